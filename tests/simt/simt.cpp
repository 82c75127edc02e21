// Runs the blocks of a launch one after another, and a block's threads as fibres: each runs until
// it waits or ends, then the next one. Nothing here but `touched` is thread-local: those are the
// kernels' variables.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibre.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr int64_t kKiB = 1024;
// Of compute capability 9.0
constexpr int64_t kSharedPerBlock = 227 * kKiB, kSharedPerMultiprocessor = 228 * kKiB;
constexpr int64_t kSharedWithoutAsking = 48 * kKiB, kReservedShared = kKiB;
constexpr int kThreadsPerBlock = 1024, kThreadsPerMultiprocessor = 2048;
constexpr int kBlocksPerMultiprocessor = 32, kRegisters = 65536, kRegistersOfThread = 256;
constexpr int kNaNByte = 0xff;

enum class Order { kForward, kBackward, kRandom };

struct Device {
  Order order = Order::kForward;
  int multiprocessors = 132;
  std::mt19937 random{1};
  int64_t launches = 0;
  cudaError_t last_error = cudaSuccess;
  std::map<const void*, int64_t> shared_allowed;  // dynamic, by kernel
};
Device device;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) {
    device.last_error = error;
  }
  return error;
}

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros;
};

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Thread {
  Fibre fibre;
  uint3 index{};
  State state = State::kReady;
  Here where;  // it waits
  alignas(16) unsigned char lane_value[16];
  std::vector<Copy> copies;                    // not committed yet
  std::deque<std::vector<Copy>> copy_batches;  // committed, oldest first
};

// The launch that runs; fibres are kept for the next one.
struct Launch {
  std::vector<std::unique_ptr<Thread>> threads;
  size_t count = 0;  // of them, in a block
  Thread* current = nullptr;
  Context scheduler;
  const std::function<void()>* body = nullptr;
  std::unique_ptr<void, decltype(&std::free)> shared{nullptr, std::free};
  std::string error;
};
Launch now;

std::string describe(const Here& here) {
  const std::string path = here.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(here.line());
}

std::string describe(uint3 at) {
  return std::to_string(at.x) + "," + std::to_string(at.y) + "," + std::to_string(at.z);
}

void run_thread() {
  now.current->fibre.arrived();
  (*now.body)();
  if (!now.current->copies.empty() || !now.current->copy_batches.empty()) {
    now.error = "a thread ends before its copies are awaited (block " + describe(blockIdx) +
        ", thread " + describe(now.current->index) + ")";
  }
  now.current->state = State::kDone;
  now.current->fibre.leave_for_good(now.scheduler);
}

// An OS thread gets memory for this library's variables when it first touches one of them.
thread_local volatile char touched;

// Fills the thread-local variables of this library with NaN: the kernels' static shared memory.
int fill_static_shared(dl_phdr_info* library, size_t, void*) {
  const auto here = reinterpret_cast<uintptr_t>(&fill_static_shared);
  const ElfW(Phdr)* own_variables = nullptr;
  bool is_this = false;
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const auto& part = library->dlpi_phdr[i];
    const uintptr_t begin = library->dlpi_addr + part.p_vaddr;
    is_this |= part.p_type == PT_LOAD && begin <= here && here < begin + part.p_memsz;
    own_variables = part.p_type == PT_TLS ? &part : own_variables;
  }
  if (is_this && own_variables != nullptr && library->dlpi_tls_data != nullptr) {
    std::memset(library->dlpi_tls_data, kNaNByte, own_variables->p_memsz);
  }
  return is_this;  // 1 ends the search
}

// The number `count`, in the order that the device runs threads or blocks in.
std::vector<size_t> turns(size_t count) {
  std::vector<size_t> turn(count);
  for (size_t i = 0; i < count; ++i) {
    turn[i] = device.order == Order::kBackward ? count - 1 - i : i;
  }
  if (device.order == Order::kRandom) {
    std::shuffle(turn.begin(), turn.end(), device.random);
  }
  return turn;
}

// Lets every thread that is ready run until it waits or ends.
bool run_ready() {
  bool any = false;
  for (const size_t i : turns(now.count)) {
    Thread& thread = *now.threads[i];
    if (thread.state == State::kReady) {
      any = true;
      now.current = &thread;
      threadIdx = thread.index;
      thread.fibre.enter(now.scheduler);
      if (!now.error.empty()) {
        throw std::runtime_error("simt: " + std::exchange(now.error, {}));
      }
    }
  }
  return any;
}

[[noreturn]] void refuse(const std::string& what, const Thread& thread) {
  throw std::runtime_error(
      "simt: " + what + " (" + describe(thread.where) + ", block " + describe(blockIdx) +
      ", thread " + describe(thread.index) + ")");
}

// Lets the threads [begin, end) go on if all wait for each other at one place in state `waiting`.
bool release(size_t begin, size_t end, State waiting, const char* barrier) {
  const auto is_waiting = [&](const auto& thread) { return thread->state == waiting; };
  const auto first = now.threads.begin() + begin, last = now.threads.begin() + end;
  const auto found = std::find_if(first, last, is_waiting);
  if (found == last) {
    return false;
  }
  const Thread& one = **found;
  for (auto it = first; it != last; ++it) {
    const Thread& other = **it;
    if (other.state == State::kDone) {
      refuse(
          std::string(barrier) + " that thread " + describe(other.index) +
              " never reaches: it has returned",
          one);
    }
    if (other.state != waiting || other.where.line() != one.where.line() ||
        std::strcmp(other.where.file_name(), one.where.file_name()) != 0) {
      refuse(
          std::string(barrier) + " that thread " + describe(other.index) +
              " does not reach: it waits at " + describe(other.where),
          one);
    }
  }
  std::for_each(first, last, [](const auto& thread) { thread->state = State::kReady; });
  return true;
}

// Lets those go on whose waiting is over; throws where nothing can end it.
void release_waiting() {
  bool any = false;
  for (size_t begin = 0; begin < now.count; begin += kWarp) {
    const size_t end = begin + kWarp;
    const bool warp_waits = std::any_of(
        now.threads.begin() + begin, now.threads.begin() + std::min(end, now.count),
        [](const auto& thread) { return thread->state == State::kAtWarpBarrier; });
    if (warp_waits && end > now.count) {
      refuse("a full mask in a warp of fewer threads", *now.threads[begin]);
    }
    any |= warp_waits && release(begin, end, State::kAtWarpBarrier, "a full mask, with a thread");
  }
  if (!any) {
    release(0, now.count, State::kAtBlockBarrier, "__syncthreads()");
  }
}

void run_block(const dim3& block, size_t shared_bytes) {
  if (shared_bytes > 0) {
    std::memset(now.shared.get(), kNaNByte, shared_bytes);
  }
  touched = 0;
  dl_iterate_phdr(fill_static_shared, nullptr);
  for (size_t i = 0; i < now.count; ++i) {
    Thread& thread = *now.threads[i];
    const auto number = static_cast<unsigned>(i);
    thread.index = {number % block.x, number / block.x % block.y, number / block.x / block.y};
    thread.state = State::kReady;
    thread.copies.clear();
    thread.copy_batches.clear();
    thread.fibre.start(run_thread);
  }
  while (run_ready()) {
    release_waiting();
  }
}

bool is_possible(const cudaLaunchConfig_t& config) {
  constexpr unsigned kMostX = 0x7fffffff, kMostYZ = 65535;
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const auto within = [](unsigned size, unsigned most) { return size > 0 && size <= most; };
  return within(grid.x, kMostX) && within(grid.y, kMostYZ) && within(grid.z, kMostYZ) &&
      within(block.x, kThreadsPerBlock) && within(block.y, kThreadsPerBlock) &&
      within(block.z, 64) && block.x * block.y * block.z <= kThreadsPerBlock;
}

bool fits(const void* kernel, size_t bytes) {
  const auto allowed = device.shared_allowed.find(kernel);
  const int64_t most = allowed == device.shared_allowed.end()
      ? kSharedWithoutAsking
      : std::max(allowed->second, kSharedWithoutAsking);
  return static_cast<int64_t>(bytes) <= most;
}

void prepare(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  now.count = size_t(1) * blockDim.x * blockDim.y * blockDim.z;
  while (now.threads.size() < now.count) {
    now.threads.push_back(std::make_unique<Thread>());
  }
  now.body = &body;
  now.error.clear();
  constexpr size_t kAlignment = 128;
  const size_t bytes = config.dynamicSmemBytes;
  void* memory = nullptr;  // of the exact size, so that AddressSanitizer sees its end
  if (bytes > 0 && posix_memalign(&memory, kAlignment, bytes) != 0) {
    throw std::bad_alloc();
  }
  now.shared.reset(memory);
}

}  // namespace

void wait_for(Wait what, const Here& here) {
  now.current->state = what == Wait::kBlock ? State::kAtBlockBarrier : State::kAtWarpBarrier;
  now.current->where = here;
  now.current->fibre.leave(now.scheduler);
}

void fail(const char* what, const Here& here) {
  now.error = std::string(what) + " (" + describe(here) + ", block " + describe(blockIdx) +
      ", thread " + describe(threadIdx) + ")";
  now.current->fibre.leave_for_good(now.scheduler);
  std::abort();  // never reached
}

void* lane_value(int lane) {
  const size_t own = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  return now.threads[own / kWarp * kWarp + lane]->lane_value;
}

void* dynamic_shared_memory() { return now.shared.get(); }

void copy_later(void* to, const void* from, size_t bytes, size_t zeros, const Here& here) {
  const auto is_aligned = [&](const void* x) {
    return reinterpret_cast<uintptr_t>(x) % bytes == 0;
  };
  if (bytes != 4 && bytes != 8 && bytes != 16) {
    fail("__pipeline_memcpy_async() of other than 4, 8 or 16 bytes", here);
  }
  if (zeros > bytes || !is_aligned(to) || !is_aligned(from)) {
    fail("__pipeline_memcpy_async() between addresses that are no multiples of its size", here);
  }
  std::memset(to, kNaNByte, bytes);
  now.current->copies.push_back({to, from, bytes, zeros});
}

void commit_copies() {
  now.current->copy_batches.push_back(std::exchange(now.current->copies, {}));
}

void wait_for_copies(size_t all_but) {
  auto& batches = now.current->copy_batches;
  for (; batches.size() > all_but; batches.pop_front()) {
    for (const Copy& copy : batches.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
      std::memset(static_cast<char*>(copy.to) + copy.bytes - copy.zeros, 0, copy.zeros);
    }
  }
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return cudaSuccess;
  }
  if (value < 0 || value > kSharedPerBlock) {
    return remember(cudaErrorInvalidValue);
  }
  device.shared_allowed[kernel] = value;
  return cudaSuccess;
}

// Registers are unknown here: each thread is taken to use as many as it can have.
cudaError_t occupancy(int* blocks, int threads, size_t dynamic_bytes) {
  if (threads < 1 || threads > kThreadsPerBlock) {
    return remember(cudaErrorInvalidValue);
  }
  const auto bytes = static_cast<int64_t>(dynamic_bytes) + kReservedShared;
  const int by_registers = std::max(1, kRegisters / kRegistersOfThread / threads);
  const int by_memory = static_cast<int>(kSharedPerMultiprocessor / bytes);
  *blocks = std::min(
      {by_registers, by_memory, kThreadsPerMultiprocessor / threads, kBlocksPerMultiprocessor});
  return cudaSuccess;
}

cudaError_t launch(
    const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
  static std::mutex one_at_a_time;
  const std::lock_guard guard(one_at_a_time);
  if (!is_possible(config)) {
    return remember(cudaErrorInvalidConfiguration);
  }
  if (!fits(kernel, config.dynamicSmemBytes)) {
    return remember(cudaErrorInvalidValue);
  }
  ++device.launches;
  prepare(config, thread);
  const dim3& grid = config.gridDim;
  for (const size_t block : turns(size_t(1) * grid.x * grid.y * grid.z)) {
    blockIdx = {
        static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
        static_cast<unsigned>(block / grid.x / grid.y)};
    run_block(config.blockDim, config.dynamicSmemBytes);
  }
  now.shared.reset();
  return cudaSuccess;
}

}  // namespace simt

// order: 0 forward, 1 backward, 2 random. For tests, by ctypes.
extern "C" void simt_configure(int order, unsigned seed, int multiprocessors) {
  simt::device.order = static_cast<simt::Order>(order);
  simt::device.random.seed(seed);
  simt::device.multiprocessors = multiprocessors;
}
extern "C" int64_t simt_launches() { return simt::device.launches; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
      : error == cudaErrorInvalidValue          ? "invalid argument"
                                                : "no error";
}
cudaError_t cudaPeekAtLastError() { return simt::device.last_error; }
cudaError_t cudaGetLastError() { return std::exchange(simt::device.last_error, cudaSuccess); }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = simt::device.multiprocessors; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = simt::kSharedPerMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = simt::kSharedPerBlock;
      return cudaSuccess;
  }
  return simt::remember(cudaErrorInvalidValue);
}
