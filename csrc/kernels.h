// What a binding asks of a kernel: sizes and raw pointers to contiguous memory, no torch types.
#pragma once

#include <cstdint>

namespace emorl {

struct SlotAttentionShape {
  int64_t batch, slots, pixels, key_width, value_width;
};

template <typename T>
struct SlotAttentionInputs {
  const T* q;             // [batch, slots, key_width]
  const T* k;             // [batch, pixels, key_width]
  const T* v;             // [batch, pixels, value_width]; may be k itself
  const T* logit_bias;    // [batch, slots] or null
  const bool* slot_mask;  // [batch, slots] or null; false = the slot takes no part
  T eps;
};

template <typename T>
struct SlotAttentionOutputs {
  T* updates;    // [batch, slots, value_width]
  T* mass;       // [batch, slots], the sum of the weights over the pixels
  T* attention;  // [batch, slots, pixels] or null
};

template <typename T>
struct SlotAttentionGradients {
  const T* grad_updates;  // [batch, slots, value_width]
  const T* updates;       // [batch, slots, value_width], from the forward pass
  const T* mass;          // [batch, slots], from the forward pass
  // outputs; a null one is not wanted
  T* grad_q;           // [batch, slots, key_width]
  T* grad_k;           // [batch, pixels, key_width]
  T* grad_v;           // [batch, pixels, value_width]; equal to grad_k: the sum of both is wanted
  T* grad_logit_bias;  // [batch, slots]
};

template <typename T>
void slot_attention_cpu(
    const SlotAttentionShape&, const SlotAttentionInputs<T>&, const SlotAttentionOutputs<T>&);

template <typename T>
void slot_attention_backward_cpu(
    const SlotAttentionShape&, const SlotAttentionInputs<T>&, const SlotAttentionGradients<T>&);

}  // namespace emorl
