// An allocator that keeps freed pages for the next tensors. No size owns them: freed pages join
// their free neighbours, and a tensor takes the first of them that hold it. So the tensors of a
// training step find room where those of the step before have been, and the kernel is asked for
// nothing. glibc must choose: give large blocks back to the kernel, at the price of a page fault
// for every 4 KiB of the next tensor, or keep them in its heap, where small objects lie between
// them and hold apart what is free.
//
// How much is kept: before more pages are mapped, free ones go back to the kernel until all pages,
// used or kept, are at most a quarter more than were ever used at one time; rounding up to a huge
// page comes on top. The quarter is for the gaps between tensors of mixed sizes; without it some
// are mapped anew in every step.
#include "tensor_memory.h"

#ifdef __linux__

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emorl {
namespace {

const size_t kPage = sysconf(_SC_PAGESIZE);  // 4 KiB, on some machines 64
constexpr size_t kHugePage = 2 << 20;
constexpr size_t kRoom = size_t{1} << 38;
constexpr size_t kSmallest = 1 << 20;  // smaller tensors are left to the default allocator
constexpr size_t kSpare = 4;           // a quarter of the most ever used may be kept beyond it

// Tensors would all begin at a page, and what is read together then competes for the same lines of
// the cache; so each begins this much further into its first page than the one before.
constexpr size_t kShift = 320;

size_t whole_pages(size_t size) { return (size + kPage - 1) / kPage * kPage; }

char* page_of(void* data) {
  return static_cast<char*>(data) - reinterpret_cast<uintptr_t>(data) % kPage;
}

// The middle of addresses that nothing uses, where pages can join each other for long: right below
// its libraries the kernel soon puts something else. Zero if it limits addresses.
uintptr_t find_room() {
  void* const room =
      mmap(nullptr, 2 * kRoom, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) {
    return 0;
  }
  munmap(room, 2 * kRoom);
  const uintptr_t middle = reinterpret_cast<uintptr_t>(room) + kRoom;
  return middle - middle % kHugePage;
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
  using Ranges = std::map<char*, size_t>;  // from the first page to the size, of whole pages

  static void free(void* data);

  // Null if there is no more memory.
  char* take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto range = first_of(size);
    if (range == free_.rend()) {
      if (!map_more(size)) {
        return nullptr;
      }
      range = first_of(size);
    }
    range->second -= size;
    char* const first = range->first + range->second;
    if (range->second == 0) {
      free_.erase(range->first);
    }
    char* const data = first + taken_++ * kShift % kPage;
    in_use_[data] = size;
    used_ += size;
    most_used_ = std::max(most_used_, used_);
    return data;
  }

  // The free pages of the highest address that hold so much: new pages come below all others.
  Ranges::reverse_iterator first_of(size_t size) {
    return std::find_if(
        free_.rbegin(), free_.rend(), [size](const auto& range) { return range.second >= size; });
  }

  // Gives the free pages of the lowest address to the kernel; false if there are none, or it does
  // not take them.
  bool give_back() {
    if (free_.empty()) {
      return false;
    }
    const auto [first, freed] = *free_.begin();
    if (munmap(first, freed) != 0) {
      return false;
    }
    mapped_ -= freed;
    if (reinterpret_cast<uintptr_t>(first) == lowest_) {
      lowest_ += freed;
    }
    free_.erase(first);
    return true;
  }

  // New pages, below the others if there is room; rounds the size up, so that the next ones begin
  // where a huge page can.
  void* map_below(size_t& size) const {
    size += (lowest_ - size) % kHugePage;
    void* const wish = reinterpret_cast<void*>(lowest_ == 0 ? 0 : lowest_ - size);
    return mmap(wish, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }

  // False if there is no more memory. New pages join those before if the kernel has room there.
  bool map_more(size_t size) {
    const size_t most = std::max(most_used_, used_ + size);
    while (mapped_ + size > most + most / kSpare && give_back()) {
    }
    void* pages = map_below(size);
    if (pages == MAP_FAILED) {
      while (give_back()) {
      }
      pages = map_below(size);
    }
    if (pages == MAP_FAILED) {
      return false;
    }
    madvise(pages, size, MADV_HUGEPAGE);
    lowest_ = reinterpret_cast<uintptr_t>(pages);
    mapped_ += size;
    set_free(static_cast<char*>(pages), size);
    return true;
  }

  // Joins the pages with free neighbours.
  void set_free(char* first, size_t size) {
    auto next = free_.lower_bound(first);
    if (next != free_.end() && first + size == next->first) {
      size += next->second;
      next = free_.erase(next);
    }
    const auto before = next == free_.begin() ? free_.end() : std::prev(next);
    if (before != free_.end() && before->first + before->second == first) {
      before->second += size;
    } else {
      free_.emplace_hint(next, first, size);
    }
  }

  // Whether the memory is ours.
  bool keep(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = in_use_.find(data);
    if (found == in_use_.end()) {
      return false;
    }
    used_ -= found->second;
    set_free(page_of(data), found->second);
    in_use_.erase(found);
    return true;
  }

  static KeepingAllocator* installed_;

  c10::Allocator* others_;
  std::mutex mutex_;  // nothing forks while it is held
  Ranges free_;       // no two of them touch
  std::unordered_map<void*, size_t> in_use_;
  uintptr_t lowest_ = find_room();                // where new pages shall end
  size_t mapped_ = 0, used_ = 0, most_used_ = 0;  // in bytes of whole pages
  size_t taken_ = 0;                              // how often
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
