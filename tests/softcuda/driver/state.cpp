// The one State, faults, and what every call checks first.
#include <unordered_set>

#include "core.h"

namespace softcuda {

thread_local std::vector<uintptr_t> context_stack;
thread_local bool inside_callback = false;
thread_local bool executing = false;

State& state() {
  static State* only = new State;  // never destroyed: modules may call back while the process ends
  return *only;
}

const char* interned(const std::string& text) {
  static auto* texts = new std::unordered_set<std::string>;
  return texts->insert(text).first->c_str();
}

// Handles are numbers that are never given out twice, so a stale one is always recognised.
uintptr_t new_handle() { return state().next_handle += 0x10; }

uintptr_t current_context() {
  const uintptr_t top = context_stack.empty() ? 0 : context_stack.back();
  return top && state().contexts.count(top) ? top : 0;
}

void report(const std::string& kind, const std::string& text) {
  State& s = state();
  const char* where = executing && s.current ? s.current->label : "";
  for (Fault& fault : s.faults)
    if (fault.kind == kind && fault.where == where) {
      ++fault.count;
      return;
    }
  s.faults.push_back({kind, text, where, 1});
}

static int injected(const std::string& call) {
  State& s = state();
  for (size_t i = 0; i < s.injections.size(); ++i) {
    Injection& injection = s.injections[i];
    if (injection.call != call || injection.after-- > 0) continue;
    const int error = injection.error;
    if (injection.sticky) s.sticky = error;
    if (--injection.times <= 0) s.injections.erase(s.injections.begin() + static_cast<long>(i));
    s.any_injection = !s.injections.empty();
    return error;
  }
  return 0;
}

int injected_error(const char* call) { return state().any_injection ? injected(call) : 0; }

Entry::Entry(const char* call, bool needs_context, bool releases) : lock(state().mutex) {
  State& s = state();
  ++s.calls[call];
  if (inside_callback) {
    report("callback", std::string(call) + " called from a host function in a stream, where no CUDA call is allowed");
    error = CUDA_ERROR_NOT_PERMITTED;
    return;
  }
  error = static_cast<CUresult>(injected_error(call));
  if (!error && needs_context && !current_context()) error = CUDA_ERROR_INVALID_CONTEXT;
  // What releases something does so in a broken context too, so that a leak report tells who tried.
  if (!error && needs_context && !releases) error = static_cast<CUresult>(s.sticky);
}

}  // namespace softcuda
