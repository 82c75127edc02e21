// The Python module emorl._C. The ops of this library register themselves when it is loaded; only
// what stands below is called from Python directly.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>

#include "tensor_memory.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of emorl";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = __VERSION__;
        info["flags"] = EMORL_FLAGS;
        info["cpu_capability"] = EMORL_CAPABILITY;
        info["torch"] = EMORL_TORCH_VERSION;
        info["cuda"] = static_cast<bool>(EMORL_CUDA);
        info["cuda_architectures"] = EMORL_CUDA_ARCHITECTURES;
        return info;
      },
      "How this library was built: compiler, flags, cpu_capability, torch version, cuda and its "
      "architectures.");
  m.def(
      "keep_tensor_memory", &emorl::keep_tensor_memory,
      "Let the CPU's tensors reuse each other's memory from now on; False where that cannot be.");
  m.def(
      "flush_denormals",
      [] {  // torch.set_flush_denormal asks the calling thread alone; here each gets one index
        at::parallel_for(0, at::get_num_threads(), 1, [](int64_t, int64_t) {
          at::globalContext().setFlushDenormal(true);
        });
      },
      "Let every thread of a parallel region count numbers too small for full precision as 0.");
}
