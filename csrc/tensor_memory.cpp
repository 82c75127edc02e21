// An allocator that keeps freed blocks for the next tensors, and no more of them than were ever
// needed at one time. glibc must choose: give large blocks back to the kernel, at the price of a
// page fault for every 4 KiB of the next tensor, or keep them in its heap, where they are split and
// what is left of them fits nothing.
#include "tensor_memory.h"

#ifdef __linux__

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

namespace emorl {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = 2 << 20;
constexpr size_t kSmallest = 1 << 20;  // smaller tensors are left to the default allocator
constexpr size_t kWaste = 4;           // a kept block serves if at most a quarter stays unused

// Blocks would all begin at a page, and what is read together then competes for the same lines of
// the cache; so each begins this much further into its first page than the one before.
constexpr size_t kShift = 320;

struct Block {
  char* data;
  size_t size;  // of whole pages, the first of which may begin before `data`

  void release() const { munmap(data - reinterpret_cast<uintptr_t>(data) % kPage, size); }
};

size_t whole_pages(size_t size) { return (size + kPage - 1) / kPage * kPage; }

// Pages that begin where a huge page can; null if there are none.
char* map_pages(size_t size) {
  void* mapped =
      mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    return nullptr;
  }
  char* const first = static_cast<char*>(mapped);
  const size_t before = kHugePage - reinterpret_cast<uintptr_t>(first) % kHugePage;
  munmap(first, before);
  if (before < kHugePage) {
    munmap(first + before + size, kHugePage - before);
  }
  madvise(first + before, size, MADV_HUGEPAGE);
  return first + before;
}

class KeepingAllocator final : public c10::Allocator {
 public:
  explicit KeepingAllocator(c10::Allocator* others) : others_(others) {}

  c10::DataPtr allocate(size_t size) override {
    void* data = size < kSmallest ? nullptr : take(whole_pages(size + kPage));
    if (data == nullptr) {  // small; or there is no more, then the default allocator says so
      data = others_->raw_allocate(size);
    } else {
      c10::profiledCPUMemoryReporter().New(data, size);
    }
    return {data, data, &free, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free; }

  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }

  static void install();

 private:
  static void free(void* data);

  char* take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Block block = take_kept(size);
    most_used_ = std::max(most_used_, used_ + (block.data == nullptr ? size : block.size));
    if (block.data == nullptr) {
      while (!kept_.empty() && used_ + kept_size_ + size > most_used_) {
        kept_size_ -= kept_.front().size;
        kept_.front().release();
        kept_.erase(kept_.begin());
      }
      block = {map_pages(size), size};
      if (block.data == nullptr) {
        return nullptr;
      }
      block.data += mapped_++ * kShift % kPage;
    }
    in_use_[block.data] = block.size;
    used_ += block.size;
    return block.data;
  }

  // The smallest kept block that serves; without data if there is none.
  Block take_kept(size_t size) {
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block) {
      const bool serves = block->size >= size && block->size - size <= block->size / kWaste;
      if (serves && (best == kept_.end() || block->size < best->size)) {
        best = block;
      }
    }
    if (best == kept_.end()) {
      return {nullptr, 0};
    }
    const Block block = *best;
    kept_.erase(best);
    kept_size_ -= block.size;
    return block;
  }

  // Whether the block is one of ours.
  bool keep(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = in_use_.find(data);
    if (found == in_use_.end()) {
      return false;
    }
    kept_.push_back({static_cast<char*>(data), found->second});
    kept_size_ += found->second;
    used_ -= found->second;
    in_use_.erase(found);
    return true;
  }

  static KeepingAllocator* installed_;

  c10::Allocator* others_;
  std::mutex mutex_;         // nothing forks while it is held
  std::vector<Block> kept_;  // in the order of their release
  std::unordered_map<void*, size_t> in_use_;
  size_t used_ = 0, kept_size_ = 0, most_used_ = 0, mapped_ = 0;
};

KeepingAllocator* KeepingAllocator::installed_ = nullptr;

void KeepingAllocator::free(void* data) {
  if (installed_->keep(data)) {
    c10::profiledCPUMemoryReporter().Delete(data);
  } else {
    installed_->others_->raw_deallocate(data);
  }
}

void KeepingAllocator::install() {
  if (installed_ != nullptr) {
    return;
  }
  installed_ = new KeepingAllocator(c10::GetCPUAllocator());  // for good: tensors live that long
  pthread_atfork(
      [] { installed_->mutex_.lock(); }, [] { installed_->mutex_.unlock(); },
      [] { installed_->mutex_.unlock(); });
  c10::SetCPUAllocator(installed_, /*priority=*/1);
}

}  // namespace

bool keep_tensor_memory() {
  KeepingAllocator::install();
  return true;
}

}  // namespace emorl

#else

bool emorl::keep_tensor_memory() { return false; }

#endif
