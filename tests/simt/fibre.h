// A stack of its own, whose function can be left at any call and entered again.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define announce_switch __sanitizer_start_switch_fiber
#define announce_arrival __sanitizer_finish_switch_fiber
#else
#define ASAN_UNPOISON_MEMORY_REGION(begin, size)
inline void announce_switch(void**, const void*, size_t) {}
inline void announce_arrival(void*, const void**, size_t*) {}
#endif

#if defined(__x86_64__)
// Saves the registers that a call must keep and the stack pointer, and goes on where `to` was left.
extern "C" void simt_switch(void** save, void* to);
asm(R"(
.pushsection .text
.weak simt_switch
.type simt_switch, @function
simt_switch:
  endbr64
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.size simt_switch, . - simt_switch
.popsection
)");
#else
#include <ucontext.h>
#endif

namespace simt {

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;

  void prepare(char* stack, size_t size, void (*function)()) {
    constexpr int kSavedRegisters = 6;
    auto** top = reinterpret_cast<void**>(stack + size);
    *--top = nullptr;  // aligns the stack as after a call
    *--top = reinterpret_cast<void*>(function);
    for (int i = 0; i < kSavedRegisters; ++i) {
      *--top = nullptr;
    }
    stack_pointer = top;
  }
  void switch_to(const Context& other) { simt_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;

  void prepare(char* stack, size_t size, void (*function)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, function, 0);
  }
  void switch_to(const Context& other) { swapcontext(&context, &other.context); }
};
#endif

class Fibre {
 public:
  Fibre() {
    void* memory = mmap(
        nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::bad_alloc();
    }
    mprotect(memory, sysconf(_SC_PAGESIZE), PROT_NONE);  // the lowest page: an overflow crashes
    stack_ = static_cast<char*>(memory);
  }
  ~Fibre() { munmap(stack_, kSize); }
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // Begins anew; `function` must end by leave_for_good().
  void start(void (*function)()) {
    ASAN_UNPOISON_MEMORY_REGION(stack_, kSize);
    context_.prepare(stack_, kSize, function);
  }

  // Lets the function run until it leaves.
  void enter(Context& from) {
    void* fake_stack = nullptr;
    announce_switch(&fake_stack, stack_, kSize);
    from.switch_to(context_);
    announce_arrival(fake_stack, nullptr, nullptr);
  }
  // The function's first call.
  void arrived() { announce_arrival(nullptr, &entered_from_, &entered_from_size_); }
  void leave(Context& to) {
    void* fake_stack = nullptr;
    announce_switch(&fake_stack, entered_from_, entered_from_size_);
    context_.switch_to(to);
    announce_arrival(fake_stack, &entered_from_, &entered_from_size_);
  }
  void leave_for_good(Context& to) {
    announce_switch(nullptr, entered_from_, entered_from_size_);
    context_.switch_to(to);
  }

 private:
  static constexpr size_t kSize = size_t(256) << 10;
  char* stack_ = nullptr;
  const void* entered_from_ = nullptr;  // the stack, known to AddressSanitizer alone
  size_t entered_from_size_ = 0;
  Context context_;
};

}  // namespace simt
