// State of the emulated driver. One mutex guards all of it; it is never held while an operation runs, because an
// operation may call back into Python, whose lock another thread may hold while it waits for this mutex.
#ifndef SOFTCUDA_CORE_H
#define SOFTCUDA_CORE_H

#define __CUDA_API_VERSION_INTERNAL  // declares every version of a call; no macro hides one
#include <cuda.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "../runtime.h"

namespace softcuda {

using Lock = std::unique_lock<std::mutex>;

// ---- operations, streams, events --------------------------------------------------------------------------
// What an operation knows to have happened before it: per stream slot, the number of the last such operation.
using Clock = std::vector<uint32_t>;

struct HostRange {
  uintptr_t first = 0, end = 0;
};

struct Stream;

struct Op {
  std::weak_ptr<Stream> stream;
  uint32_t slot = 0, number = 0;  // of its stream, and its place there
  const char* label = "";         // interned
  std::vector<std::shared_ptr<Op>> needs;
  std::function<CUresult()> work;
  Clock clock;
  HostRange host;  // page-locked memory that it reads or writes
  bool done = false;
  double time_ms = 0;  // host clock when it was done; what events measure
  uint32_t id() const { return slot << 24 | (number & 0xffffff); }
};
using OpPtr = std::shared_ptr<Op>;

struct Capture;

struct Context {
  uintptr_t handle = 0;
  int references = 0;
  bool primary = false;
};

struct Stream {
  uintptr_t handle = 0;
  uintptr_t context = 0;
  unsigned flags = 0;
  uint32_t slot = 0;
  OpPtr last;
  std::deque<OpPtr> queue;  // not done yet
  std::shared_ptr<Capture> capture;
  ~Stream();
};
using StreamPtr = std::shared_ptr<Stream>;

struct Event {
  uintptr_t handle = 0;
  uintptr_t context = 0;
  unsigned flags = 0;
  OpPtr recorded;
  std::shared_ptr<Capture> capture;  // recorded in a capturing stream: has no meaning outside of it
  std::vector<size_t> captured_after;
};

struct Node {
  const char* label = "";
  std::function<CUresult()> work;
  std::vector<size_t> needs;
};

struct Graph {
  std::vector<Node> nodes;
};

struct Capture {
  Graph graph;
  StreamPtr origin;
  CUstreamCaptureMode mode;
  bool broken = false;
  std::thread::id thread;
  std::map<Stream*, std::vector<size_t>> ends;  // per stream, the nodes that its next one follows
};

struct Module {
  void* library = nullptr;
  uintptr_t context = 0;
  decltype(&softcuda_describe) describe = nullptr;
  decltype(&softcuda_launch) launch = nullptr;
  ~Module();
};
using ModulePtr = std::shared_ptr<Module>;

struct Function {
  ModulePtr module;
  std::string name;
  SoftcudaKernel kernel{};
  unsigned dynamic_limit = 48 * 1024;  // until cuFuncSetAttribute raises it
  unsigned block[3] = {1, 1, 1}, shared = 0;  // of the calls from before cuLaunchKernel
  std::vector<char> parameters;
};

// ---- memory -----------------------------------------------------------------------------------------------
enum class Kind { device, host, registered };

struct Allocation {
  uintptr_t address = 0;
  size_t bytes = 0;     // as asked for
  uintptr_t first = 0, end = 0;  // with red zones
  Kind kind = Kind::device;
  uint64_t number = 0;  // counts all allocations; named in reports
  uintptr_t context = 0;
  unsigned flags = 0;
};

struct Settings {
  std::string device_name = "Emulated GPU (sm_86)";
  int capability = 86, multiprocessors = 16, integrated = 0, maps_host = 1;
  int shared_bytes = 48 * 1024, shared_optin = 99 * 1024;
  uint64_t total_bytes = 8ull << 30;
  uint64_t seed = 0;
  double eager = 0;  // chance that an operation which is ready runs at once, when another is put in a queue
  uint32_t checks = SOFTCUDA_CHECK_GLOBAL | SOFTCUDA_CHECK_SHARED;
};

// The first of its kind in an operation, and how many there were.
struct Fault {
  std::string kind, text;
  const char* where;
  uint64_t count;
};

struct Injection {
  std::string call;
  long after = 0;  // calls still to let pass
  long times = 1;  // and then to let fail
  int error = 0;
  bool sticky = false;
};

struct State {
  std::mutex mutex;
  std::condition_variable changed;
  Settings settings;
  std::mt19937_64 random{0};

  SoftcudaRuntime runtime{};
  std::map<uintptr_t, Allocation> live;  // by address, device and page-locked host memory
  std::map<uintptr_t, Allocation> registered;
  std::deque<Allocation> quarantine;
  std::map<uintptr_t, size_t> spare;  // free stretches of the arena
  size_t quarantine_bytes = 0, device_bytes = 0;
  uint64_t allocations = 0;

  uintptr_t next_handle = 0x5c000010;
  std::unordered_map<uintptr_t, std::shared_ptr<Context>> contexts;
  std::unordered_map<uintptr_t, StreamPtr> streams;
  std::unordered_map<uintptr_t, std::shared_ptr<Event>> events;
  std::unordered_map<uintptr_t, ModulePtr> modules;
  std::unordered_map<uintptr_t, std::shared_ptr<Function>> functions;
  std::unordered_map<uintptr_t, std::shared_ptr<Graph>> graphs;
  std::unordered_map<uintptr_t, std::shared_ptr<Graph>> executables;
  std::vector<std::shared_ptr<Capture>> captures;
  uintptr_t primary = 0;

  StreamPtr legacy, per_thread;
  std::vector<StreamPtr> active;  // with something in their queue, destroyed ones too
  std::vector<uint32_t> slot_numbers;  // last number given out per slot
  std::vector<bool> slot_used;
  Clock host;  // what the host has waited for
  bool running = false;
  const Op* current = nullptr;  // the operation that runs
  std::pair<uint32_t, const char*> recent[4096];  // what an id stood for, while it is not too long ago

  int sticky = 0;
  std::vector<Fault> faults;
  std::map<std::string, SoftcudaCounters> counters;
  std::vector<Injection> injections;
  std::atomic<bool> any_injection{false};
  std::map<std::string, uint64_t> calls;
};

State& state();
const char* interned(const std::string& text);
uintptr_t new_handle();

// memory.cpp
CUresult allocate(size_t bytes, Kind kind, unsigned flags, uintptr_t* address);
CUresult release(uintptr_t address, Kind kind);
const Allocation* find_allocation(uintptr_t address);  // live or registered, that holds the address
bool page_locked(uintptr_t address, size_t bytes);
std::string describe_address(uintptr_t address);
int check_access(SoftcudaRuntime*, uintptr_t address, size_t bytes, int access);
// Whether all bytes lie in one live allocation; else reports and returns false. For arguments of calls.
bool check_argument(const char* call, uintptr_t address, size_t bytes);
void copy_bytes(uintptr_t to, uintptr_t from, size_t bytes);  // checked, keeps track of what is initialised
void fill_bytes(uintptr_t to, const void* pattern, size_t width, size_t count);
void report(const std::string& kind, const std::string& text);

// streams.cpp
CUresult find_stream(CUstream handle, StreamPtr* out);
StreamPtr new_stream(unsigned flags);
struct Work {
  std::string label;
  std::function<CUresult()> run;
  std::vector<OpPtr> needs = {};
  HostRange host = {};
};
CUresult enqueue(Lock&, const StreamPtr&, Work, OpPtr* out = nullptr);
void wait_for(Lock&, OpPtr);  // a copy: the stream and the event go on while it waits
void wait_for_all(Lock&);
void progress(Lock&);  // runs one operation that is ready, if nobody runs one
bool host_range_busy(const HostRange&);
double now_ms();
inline size_t recent_place(uint32_t id) { return (id + (id >> 24) * 97) % 4096; }

// For calls that a capture does not allow: invalidates it and returns the error, if there is one.
CUresult refuse_in_capture();
// An error that a test asked for.
int injected_error(const char* call);

// Every call begins here: `entry.error` is not 0 when the call must return it at once.
struct Entry {
  Lock lock;
  CUresult error = CUDA_SUCCESS;
  explicit Entry(const char* call, bool needs_context = true, bool releases = false);
};
uintptr_t current_context();
extern thread_local std::vector<uintptr_t> context_stack;
extern thread_local bool inside_callback;  // of a host function
extern thread_local bool executing;        // this thread runs an operation

}  // namespace softcuda

// Opens a call: `ENTER(cuMemAlloc)` returns from it when it must fail, and leaves the lock held in `entry`.
#define ENTER(name)                       \
  softcuda::Entry entry(#name);           \
  if (entry.error) return entry.error;
#define ENTER_ANYWHERE(name)              \
  softcuda::Entry entry(#name, false);    \
  if (entry.error) return entry.error;

#endif
