// What is running: the launch, its fibers, the one that runs now; and how a fault gets to the driver.
#ifndef SOFTCUDA_STATE_H
#define SOFTCUDA_STATE_H

#define SOFTCUDA_EXECUTOR
#include "cuda_dialect.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "../runtime.h"
#include "context.h"

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kDynamicBytes = 227 * 1024;  // the most that any GPU gives a block
constexpr size_t kSharedBytes = 2 * kDynamicBytes;

extern "C" {
extern const SoftcudaEntry softcuda_entries[];  // the kernel's translation unit ends with this table
extern const char softcuda_image[];             // and this: the file of the module
extern unsigned char __ehdr_start[], _end[];    // the linker's: where the module lies
uint3 threadIdx, blockIdx, blockDim, gridDim;
alignas(128) unsigned char softcuda_dynamic_shared[kSharedBytes];  // behind it the static arrays
}

namespace {

struct Fiber {
  Context context;
  unsigned char* stack;
  unsigned thread;  // linear index within the block
  bool waiting;     // at a barrier; otherwise it has returned, or not begun
  int site, line, kind, predicate;
};

struct Launch {
  const SoftcudaEntry* entry;
  const void* parameters;
  SoftcudaRuntime* runtime;
  SoftcudaCounters* counters;
  unsigned threads;
  unsigned dynamic_bytes;
  bool check_global, check_shared;
  int result;  // CUresult; anything but 0 ends the launch
};

Fiber fibers[kMaxThreads];
unsigned char* stacks;
unsigned char* free_stacks[kMaxThreads];
unsigned free_stack_count;
Context scheduler;
Fiber* current;        // runs now
const Fiber* subject;  // of a report about a fiber that does not run
SoftcudaCounters no_counters;
Launch launch = {nullptr, nullptr, nullptr, &no_counters, 0, 0, false, false, 0};
int barrier_result;
unsigned launch_number;
const void* access_pc;  // of the access that is being looked at; for reports

void fiber_main() {
  launch.entry->call(launch.parameters);
  current->waiting = false;
  Context ignored;
  change(&ignored, &scheduler);
}

uint3 position(unsigned thread) {
  return {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

// What a fiber wants done on the stack of the thread that launched: the driver, and Python behind it, need
// more room than a fiber has, and Python may look where its stack is.
void (*wish)(void*);
void* wish_data;

void on_scheduler(void (*work)(void*), void* data) {
  if (current == nullptr) return work(data);
  wish = work;
  wish_data = data;
  change(&current->context, &scheduler);
}

void resume(Fiber* fiber) {
  current = fiber;
  threadIdx = position(fiber->thread);
  for (change(&scheduler, &fiber->context); wish != nullptr; change(&scheduler, &fiber->context)) {
    void (*work)(void*) = wish;
    wish = nullptr;
    work(wish_data);
  }
  current = nullptr;
}

// Ends the launch from within a thread, as an error on a GPU does. Does not return.
void abandon(int result) {
  if (launch.result == 0) launch.result = result;
  current->waiting = false;
  change(&current->context, &scheduler);
  abort();
}

// ---- reports ----

// "speckle.cu:123" for an address of this module's code; empty when the tools are missing.
const char* source_of(const void* pc) {
  static struct { const void* pc; char text[160]; } known[64];
  static unsigned count;
  for (unsigned i = 0; i < count; ++i)
    if (known[i].pc == pc) return known[i].text;
  if (count == 64) count = 0;
  auto& entry = known[count++];
  entry.pc = pc;
  entry.text[0] = 0;
  char command[1024];
  snprintf(command, sizeof command, "addr2line -s -e '%s' %#lx 2>/dev/null", softcuda_image,
           static_cast<unsigned long>(static_cast<const unsigned char*>(pc) - __ehdr_start - 1));
  if (FILE* pipe = popen(command, "r")) {
    char line[128];
    if (fgets(line, sizeof line, pipe) != nullptr && strchr(line, '?') == nullptr) {
      line[strcspn(line, "\n ")] = 0;
      snprintf(entry.text, sizeof entry.text, ", %s", line);
    }
    pclose(pipe);
  }
  return entry.text;
}

const char* where() {
  static char text[400];
  const Fiber* fiber = subject != nullptr ? subject : current;
  if (fiber == nullptr) return "between threads";
  const uint3 t = position(fiber->thread);
  snprintf(text, sizeof text, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u)%s", launch.entry->name, blockIdx.x,
           blockIdx.y, blockIdx.z, t.x, t.y, t.z, access_pc != nullptr ? source_of(access_pc) : "");
  return text;
}

struct Report { const char* kind; char text[300]; };

void deliver(void* data) {
  const Report& found = *static_cast<Report*>(data);
  SoftcudaRuntime* runtime = launch.runtime;
  if (runtime != nullptr && runtime->report != nullptr)
    runtime->report(runtime, found.kind, found.text);  // which asks where() itself
  else
    fprintf(stderr, "softcuda: %s: %s at %s\n", found.kind, found.text, where());
}

__attribute__((format(printf, 2, 3))) void report(const char* kind, const char* format, ...) {
  Report found = {kind, {}};
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(found.text, sizeof found.text, format, arguments);
  va_end(arguments);
  on_scheduler(deliver, &found);
}

// One report of each kind for each place in the code and launch; a kernel repeats a fault in every thread.
bool first_time(const char* kind, const void* pc) {
  static struct { const char* kind; const void* pc; unsigned launch; } seen[64];
  unsigned slot = 0;
  for (; slot < 64 && seen[slot].launch == launch_number; ++slot)
    if (seen[slot].kind == kind && seen[slot].pc == pc) return false;
  if (slot == 64) return false;
  seen[slot] = {kind, pc, launch_number};
  return true;
}

}  // namespace

#endif
