// What tests ask of the emulated driver and what real ones do not have: tests/softcuda/control.py calls it.
#include <dlfcn.h>

#include "core.h"

using namespace softcuda;

namespace {
thread_local std::string answer;  // of this thread's last question
const char* give(std::string text) { return (answer = std::move(text)).c_str(); }
}  // namespace

extern "C" {

// Called by the generated calls that nothing implements.
int softcuda_unsupported(const char* call) {
  Lock lock(state().mutex);
  ++state().calls[std::string("unsupported ") + call];
  return CUDA_ERROR_NOT_SUPPORTED;
}

// Lines "kind: text", one for each kind and operation; most of a kernel's threads go wrong the same way.
const char* softcuda_faults(int clear) {
  Lock lock(state().mutex);
  State& s = state();
  std::string text;
  for (auto& fault : s.faults) {
    text += fault.kind + ": " + fault.text;
    if (*fault.where) text += std::string(" [in ") + fault.where + "]";
    if (fault.count > 1) text += ", " + std::to_string(fault.count) + " times";
    text += "\n";
  }
  if (clear) s.faults.clear();
  return give(text);
}

void softcuda_set(const char* name, double value) {
  Lock lock(state().mutex);
  Settings& settings = state().settings;
  const std::string key = name;
  if (key == "seed") {
    settings.seed = static_cast<uint64_t>(value);
    state().random.seed(settings.seed);
  }
  if (key == "eager") settings.eager = value;
  if (key == "checks") settings.checks = static_cast<uint32_t>(value);
  if (key == "capability") settings.capability = static_cast<int>(value);
  if (key == "multiprocessors") settings.multiprocessors = static_cast<int>(value);
  if (key == "integrated") settings.integrated = static_cast<int>(value);
  if (key == "maps_host") settings.maps_host = static_cast<int>(value);
  if (key == "shared_bytes") settings.shared_bytes = static_cast<int>(value);
  if (key == "shared_optin") settings.shared_optin = static_cast<int>(value);
  if (key == "total_bytes") settings.total_bytes = static_cast<uint64_t>(value);
}

void softcuda_name(const char* name) {
  Lock lock(state().mutex);
  state().settings.device_name = name;
}

void softcuda_inject(const char* call, long after, long times, int error, int sticky) {
  Lock lock(state().mutex);
  state().injections.push_back({call, after, times, error, sticky != 0});
  state().any_injection = true;
}

// Injections that nothing has run into yet.
int softcuda_injections() {
  Lock lock(state().mutex);
  return static_cast<int>(state().injections.size());
}

// Device bytes, page-locked bytes, then how many: allocations, streams, events, modules, graphs, operations.
void softcuda_live(uint64_t out[8]) {
  Lock lock(state().mutex);
  State& s = state();
  std::fill_n(out, 8, 0);
  for (auto& entry : s.live) out[entry.second.kind == Kind::device ? 0 : 1] += entry.second.bytes;
  for (auto& entry : s.registered) out[1] += entry.second.bytes;
  out[2] = s.live.size() + s.registered.size();
  out[3] = s.streams.size();
  out[4] = s.events.size();
  out[5] = s.modules.size();
  out[6] = s.graphs.size() + s.executables.size();
  for (auto& stream : s.active) out[7] += stream->queue.size();
}

int softcuda_counters(const char* kernel, SoftcudaCounters* out) {
  Lock lock(state().mutex);
  auto found = state().counters.find(kernel);
  if (found == state().counters.end()) return 0;
  *out = found->second;
  return 1;
}

uint64_t softcuda_calls(const char* call) {
  Lock lock(state().mutex);
  auto found = state().calls.find(call);
  return found == state().calls.end() ? 0 : found->second;
}

// Faults, counts, injections and a broken context are forgotten; what is queued runs, what is live stays.
void softcuda_reset() {
  Lock lock(state().mutex);
  State& s = state();
  wait_for_all(lock);
  s.sticky = 0;
  s.faults.clear();
  for (auto& entry : s.counters) entry.second = {};
  s.calls.clear();
  s.injections.clear();
  s.any_injection = false;
  s.settings = Settings{};
  s.random.seed(0);
}

void softcuda_drain() {
  Lock lock(state().mutex);
  wait_for_all(lock);
}

// A host function in a stream says what device memory it reads or writes, as a kernel's accesses would.
int softcuda_touch(uint64_t address, uint64_t bytes, int access) {
  return check_access(&state().runtime, address, bytes, access);
}

}  // extern "C"
