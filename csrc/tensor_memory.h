#pragma once

namespace emorl {

// Let the CPU's tensors reuse each other's memory, from now on. False where that is not possible.
bool keep_tensor_memory();

}  // namespace emorl
