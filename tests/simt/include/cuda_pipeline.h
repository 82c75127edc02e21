// Stand-in for CUDA's header: a copy happens no earlier than the thread waits for it, and its
// target is NaN until then.
#pragma once

#include <cuda_runtime.h>

namespace simt {
void copy_later(void* to, const void* from, size_t bytes, size_t zeros, const Here&);
void commit_copies();
void wait_for_copies(size_t all_but);
}  // namespace simt

// The last `zeros` of the bytes become 0 instead of being read.
inline void __pipeline_memcpy_async(
    void* to, const void* from, size_t bytes, size_t zeros = 0,
    const simt::Here& here = simt::Here::current()) {
  simt::copy_later(to, from, bytes, zeros, here);
}
inline void __pipeline_commit() { simt::commit_copies(); }
inline void __pipeline_wait_prior(size_t all_but) { simt::wait_for_copies(all_but); }
