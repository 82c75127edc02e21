// What the binding of slot_attention asks of its kernels: sizes and raw pointers, no torch. Memory
// is contiguous. T is what is computed with; S is how the largest tensors, k and v, are stored.
#pragma once

#include <cstdint>

namespace emorl::slot_attention {

struct Shape {
  int64_t batch, slots, pixels, key_width, value_width;
};

template <typename T, typename S = T>
struct Inputs {
  const T* q;             // [batch, slots, key_width]
  const S* k;             // [batch, pixels, key_width]
  const S* v;             // [batch, pixels, value_width]; may be k itself
  const T* logit_bias;    // [batch, slots] or null
  const bool* slot_mask;  // [batch, slots] or null; false = the slot takes no part
  T eps;
};

template <typename T>
struct Outputs {
  T* updates;    // [batch, slots, value_width]
  T* mass;       // [batch, slots], the sum of the weights over the pixels
  T* attention;  // [batch, slots, pixels] or null
};

template <typename T, typename S = T>
struct Gradients {
  const T* grad_updates;  // [batch, slots, value_width]
  const T* updates;       // [batch, slots, value_width], from the forward pass
  const T* mass;          // [batch, slots], from the forward pass
  // outputs; a null one is not wanted
  T* grad_q;           // [batch, slots, key_width]
  S* grad_k;           // [batch, pixels, key_width]
  S* grad_v;           // [batch, pixels, value_width]; equal to grad_k: the sum of both is wanted
  T* grad_logit_bias;  // [batch, slots]
};

template <typename T>
void slot_attention_cpu(const Shape&, const Inputs<T>&, const Outputs<T>&);

template <typename T>
void slot_attention_backward_cpu(const Shape&, const Inputs<T>&, const Gradients<T>&);

// Values of type T that the CUDA kernels need as scratch memory, forward and backward.
template <typename T, typename S>
int64_t slot_attention_cuda_scratch(const Shape&, const Inputs<T, S>&);
template <typename T, typename S>
int64_t slot_attention_backward_cuda_scratch(const Shape&, const Inputs<T, S>&);

// Both throw std::runtime_error where the launch fails; `stream` is a cudaStream_t.
template <typename T, typename S>
void slot_attention_cuda(
    const Shape&, const Inputs<T, S>&, const Outputs<T>&, T* scratch, void* stream);

template <typename T, typename S>
void slot_attention_backward_cuda(
    const Shape&, const Inputs<T, S>&, const Gradients<T, S>&, T* scratch, void* stream);

}  // namespace emorl::slot_attention
