// Stacks of their own for a GPU's threads, and the change from one to another.
#ifndef SOFTCUDA_CONTEXT_H
#define SOFTCUDA_CONTEXT_H

#include <stddef.h>
#include <stdint.h>

// ucontext's change of context is a system call or two; a kernel with barriers needs millions of them.
#if defined(__x86_64__) && !defined(SOFTCUDA_UCONTEXT)
#define SOFTCUDA_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace {

constexpr size_t kStackBytes = 64 * 1024;
// The odd lines keep the tops of neighbouring stacks apart in the cache, where a power of two puts all of
// them into the same few sets.
constexpr size_t kStackStride = kStackBytes + 13 * 64;

#ifdef SOFTCUDA_OWN_SWITCH
extern "C" void softcuda_switch(void** save, void* load);
asm(R"(
  .text
  .hidden softcuda_switch
  .globl softcuda_switch
  .type softcuda_switch, @function
softcuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size softcuda_switch, . - softcuda_switch
)");
using Context = void*;
void prepare(Context* context, unsigned char* stack, void (*entry)()) {
  uintptr_t top = reinterpret_cast<uintptr_t>(stack + kStackBytes) & ~uintptr_t{15};
  void** sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // where entry would return to, and the alignment that a function expects on entry
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  *context = sp;
}
void change(Context* from, Context* to) { softcuda_switch(from, *to); }
#else
using Context = ucontext_t;
void prepare(Context* context, unsigned char* stack, void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}
void change(Context* from, Context* to) { swapcontext(from, to); }
#endif

}  // namespace

#endif
