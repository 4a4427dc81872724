// Streams that defer: an operation runs when the host waits for it, or for something that needs it, and not
// before, unless the seeded order of operations that nothing orders says so.
#include <algorithm>
#include <chrono>

#include "core.h"

namespace softcuda {

double now_ms() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

constexpr uint32_t shared_slot = 255;

static void merge(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

// Slots of destroyed streams serve again, with numbers that go on: an id names its operation for good.
static uint32_t take_slot() {
  State& s = state();
  for (uint32_t i = 0; i < s.slot_used.size(); ++i)
    if (!s.slot_used[i]) {
      s.slot_used[i] = true;
      return i;
    }
  if (s.slot_used.size() > shared_slot) return shared_slot;  // some races between such streams go unseen
  s.slot_used.push_back(true);
  s.slot_numbers.push_back(0);
  return static_cast<uint32_t>(s.slot_used.size() - 1);
}

// Its queue is empty by now: `active` holds a destroyed stream until then.
Stream::~Stream() { state().slot_used[slot] = slot == shared_slot; }

StreamPtr new_stream(unsigned flags) {
  auto stream = std::make_shared<Stream>();
  stream->flags = flags;
  stream->slot = take_slot();
  stream->context = current_context();
  return stream;
}

static void make_default_streams() {
  State& s = state();
  if (s.legacy) return;
  s.legacy = new_stream(CU_STREAM_DEFAULT);
  s.per_thread = new_stream(CU_STREAM_DEFAULT);
}

CUresult find_stream(CUstream handle, StreamPtr* out) {
  State& s = state();
  make_default_streams();
  if (handle == nullptr || handle == CU_STREAM_LEGACY) return *out = s.legacy, CUDA_SUCCESS;
  if (handle == CU_STREAM_PER_THREAD) return *out = s.per_thread, CUDA_SUCCESS;
  auto entry = s.streams.find(reinterpret_cast<uintptr_t>(handle));
  if (entry == s.streams.end()) return CUDA_ERROR_INVALID_HANDLE;
  *out = entry->second;
  return CUDA_SUCCESS;
}

// The default stream waits for all other streams, and they for it, unless they were made non-blocking.
static void add_default_stream_order(const StreamPtr& stream, Op& op) {
  State& s = state();
  if (stream == s.legacy) {
    std::vector<StreamPtr> others = s.active;  // destroyed ones that are not done yet, too
    for (auto& entry : s.streams) others.push_back(entry.second);
    others.push_back(s.per_thread);
    for (auto& other : others)
      if (other != stream && other->last && !(other->flags & CU_STREAM_NON_BLOCKING)) op.needs.push_back(other->last);
  } else if (!(stream->flags & CU_STREAM_NON_BLOCKING) && s.legacy->last) {
    op.needs.push_back(s.legacy->last);
  }
}

CUresult capture_work(const StreamPtr&, Work&&);

CUresult enqueue(Lock& lock, const StreamPtr& stream, Work work, OpPtr* out) {
  State& s = state();
  if (stream->capture) return capture_work(stream, std::move(work));
  if (stream == s.legacy)
    for (auto& capture : s.captures)
      if (!(capture->origin->flags & CU_STREAM_NON_BLOCKING)) {
        capture->broken = true;
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      }
  auto op = std::make_shared<Op>();
  op->stream = stream;
  op->slot = stream->slot;
  op->number = ++s.slot_numbers[stream->slot];
  op->label = interned(work.label);
  op->needs = std::move(work.needs);
  op->host = work.host;
  op->work = std::move(work.run);
  s.recent[recent_place(op->id())] = {op->id(), op->label};
  if (stream->last) op->needs.push_back(stream->last);
  add_default_stream_order(stream, *op);
  op->clock = s.host;
  for (auto& need : op->needs) merge(op->clock, need->clock);
  if (op->clock.size() <= op->slot) op->clock.resize(op->slot + 1);
  op->clock[op->slot] = op->number;
  op->needs.erase(std::remove_if(op->needs.begin(), op->needs.end(), [](auto& need) { return need->done; }),
                  op->needs.end());
  stream->last = op;
  stream->queue.push_back(op);
  if (stream->queue.size() == 1) s.active.push_back(stream);
  if (out) *out = op;
  std::uniform_real_distribution<> chance(0, 1);
  while (s.settings.eager > 0 && !s.running && !s.active.empty() && chance(s.random) < s.settings.eager) progress(lock);
  return CUDA_SUCCESS;
}

static void run(Lock& lock, const StreamPtr& stream) {
  State& s = state();
  const OpPtr op = stream->queue.front();
  s.running = true;
  s.current = op.get();
  s.runtime.operation = op->id();
  s.runtime.checks = s.settings.checks;
  s.runtime.seed = s.settings.seed;
  CUresult result = CUDA_SUCCESS;
  if (!s.sticky && op->work) {
    lock.unlock();
    executing = true;
    result = op->work();
    executing = false;
    lock.lock();
  }
  if (result && !s.sticky) s.sticky = result;
  op->work = nullptr;
  op->needs.clear();
  op->time_ms = now_ms();
  op->done = true;
  s.running = false;
  s.current = nullptr;
  s.runtime.operation = 0;
  stream->queue.pop_front();
  if (stream->queue.empty()) s.active.erase(std::find(s.active.begin(), s.active.end(), stream));
  s.changed.notify_all();
}

// From the front of a stream along needs that are not met, to an operation that can run.
static StreamPtr runnable(StreamPtr stream) {
  State& s = state();
  for (;;) {
    std::vector<OpPtr> unmet;
    for (auto& need : stream->queue.front()->needs)
      if (!need->done) unmet.push_back(need);
    if (unmet.empty()) return stream;
    stream = unmet[s.random() % unmet.size()]->stream.lock();  // alive: it is in `active`
  }
}

void progress(Lock& lock) {
  State& s = state();
  if (s.running || s.active.empty()) return;
  run(lock, runnable(s.active[s.random() % s.active.size()]));
}

void wait_for(Lock& lock, OpPtr op) {
  State& s = state();
  if (!op) return;
  while (!op->done) {
    if (s.running) {
      s.changed.wait(lock);
    } else if (s.settings.seed && s.random() % 4 == 0) {
      progress(lock);  // something else overtakes
    } else {
      run(lock, runnable(op->stream.lock()));
    }
  }
  merge(s.host, op->clock);
}

void wait_for_all(Lock& lock) {
  State& s = state();
  std::vector<OpPtr> last;
  for (auto& stream : s.active) last.push_back(stream->last);
  for (auto& entry : s.streams)
    if (entry.second->last) last.push_back(entry.second->last);
  if (s.legacy) last.insert(last.end(), {s.legacy->last, s.per_thread->last});
  for (auto& op : last) wait_for(lock, op);
}

bool host_range_busy(const HostRange& range) {
  for (auto& stream : state().active)
    for (auto& op : stream->queue)
      if (op->host.first < range.end && range.first < op->host.end) return true;
  return false;
}

}  // namespace softcuda
