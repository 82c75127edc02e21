// Memory that begins at a cache line, so that no load or store of a whole vector is split between
// two lines.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace emorl {

template <typename T>
struct AlignedAllocator {
  using value_type = T;

  AlignedAllocator() = default;
  template <typename U>
  explicit AlignedAllocator(const AlignedAllocator<U>&) {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  bool operator==(const AlignedAllocator&) const = default;

 private:
  static constexpr std::align_val_t kLine{64};
};

template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace emorl
