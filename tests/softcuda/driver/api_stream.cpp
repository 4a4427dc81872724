// Streams, events, host functions.
#include "core.h"

using namespace softcuda;

namespace softcuda {
bool capturing(const Stream& stream) { return static_cast<bool>(stream.capture); }
CUresult break_capture(Stream& stream);
CUresult record_captured(const StreamPtr&, Event&);
CUresult wait_captured(const StreamPtr&, Event&);
}  // namespace softcuda

namespace {

CUresult find_event(CUevent handle, std::shared_ptr<Event>* out) {
  auto& events = state().events;
  auto found = events.find(reinterpret_cast<uintptr_t>(handle));
  if (found == events.end()) return CUDA_ERROR_INVALID_HANDLE;
  *out = found->second;
  return CUDA_SUCCESS;
}

}  // namespace

#define FIND_STREAM(handle)                                       \
  StreamPtr stream;                                               \
  if (const CUresult missing = find_stream(handle, &stream)) return missing;
#define FIND_EVENT(handle)                                        \
  std::shared_ptr<Event> event;                                   \
  if (const CUresult missing = find_event(handle, &event)) return missing;

extern "C" {

CUresult cuStreamCreateWithPriority(CUstream* out, unsigned flags, int) {
  ENTER(cuStreamCreate)
  if (flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  StreamPtr ignored;
  find_stream(nullptr, &ignored);  // the default streams take the first slots
  auto stream = new_stream(flags);
  stream->handle = new_handle();
  state().streams[stream->handle] = stream;
  *out = reinterpret_cast<CUstream>(stream->handle);
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* out, unsigned flags) { return cuStreamCreateWithPriority(out, flags, 0); }

// What is in the stream's queue still runs; nobody waits for it here.
CUresult cuStreamDestroy_v2(CUstream handle) {
  Entry entry("cuStreamDestroy", true, true);
  if (entry.error) return entry.error;
  auto found = state().streams.find(reinterpret_cast<uintptr_t>(handle));
  if (found == state().streams.end()) return CUDA_ERROR_INVALID_HANDLE;
  state().streams.erase(found);
  return static_cast<CUresult>(state().sticky);
}

CUresult cuStreamSynchronize(CUstream handle) {
  ENTER(cuStreamSynchronize)
  FIND_STREAM(handle)
  if (capturing(*stream)) return break_capture(*stream);
  if (stream->last) wait_for(entry.lock, stream->last);
  return static_cast<CUresult>(state().sticky);
}

CUresult cuStreamQuery(CUstream handle) {
  ENTER(cuStreamQuery)
  FIND_STREAM(handle)
  if (capturing(*stream)) return break_capture(*stream);
  progress(entry.lock);
  if (state().sticky) return static_cast<CUresult>(state().sticky);
  if (stream->last && !stream->last->done) return CUDA_ERROR_NOT_READY;
  if (stream->last) wait_for(entry.lock, stream->last);
  return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
  ENTER(cuStreamWaitEvent)
  FIND_STREAM(handle)
  FIND_EVENT(event_handle)
  if (event->capture || capturing(*stream)) return wait_captured(stream, *event);
  if (!event->recorded) return CUDA_SUCCESS;  // an event that was never recorded counts as complete
  Work work{"wait for an event", nullptr};
  work.needs = {event->recorded};
  return enqueue(entry.lock, stream, std::move(work));
}

CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
  ENTER(cuStreamGetFlags)
  FIND_STREAM(handle)
  *flags = stream->flags;
  return CUDA_SUCCESS;
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  ENTER(cuLaunchHostFunc)
  FIND_STREAM(handle)
  if (!function) return CUDA_ERROR_INVALID_VALUE;
  Work work{"host function", [=] {
              inside_callback = true;
              function(data);
              inside_callback = false;
              return CUDA_SUCCESS;
            }};
  work.host = {0, UINTPTR_MAX};  // nobody says what it reads: a later copy must not poison that
  return enqueue(entry.lock, stream, std::move(work));
}

// ---- events -----------------------------------------------------------------------------------------------
CUresult cuEventCreate(CUevent* out, unsigned flags) {
  ENTER(cuEventCreate)
  auto event = std::make_shared<Event>();
  event->handle = new_handle();
  event->context = current_context();
  event->flags = flags;
  state().events[event->handle] = event;
  *out = reinterpret_cast<CUevent>(event->handle);
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent handle) {
  Entry entry("cuEventDestroy", true, true);
  if (entry.error) return entry.error;
  if (!state().events.erase(reinterpret_cast<uintptr_t>(handle))) return CUDA_ERROR_INVALID_HANDLE;
  return static_cast<CUresult>(state().sticky);
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
  ENTER(cuEventRecord)
  FIND_STREAM(stream_handle)
  FIND_EVENT(handle)
  if (capturing(*stream)) return record_captured(stream, *event);
  event->capture = nullptr;
  return enqueue(entry.lock, stream, {"event", nullptr}, &event->recorded);
}

CUresult cuEventSynchronize(CUevent handle) {
  ENTER(cuEventSynchronize)
  FIND_EVENT(handle)
  if (event->capture) return CUDA_ERROR_CAPTURED_EVENT;
  wait_for(entry.lock, event->recorded);
  return static_cast<CUresult>(state().sticky);
}

CUresult cuEventQuery(CUevent handle) {
  ENTER(cuEventQuery)
  FIND_EVENT(handle)
  if (event->capture) return CUDA_ERROR_CAPTURED_EVENT;
  progress(entry.lock);
  if (state().sticky) return static_cast<CUresult>(state().sticky);
  if (event->recorded && !event->recorded->done) return CUDA_ERROR_NOT_READY;
  wait_for(entry.lock, event->recorded);
  return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime_v2(float* ms, CUevent start_handle, CUevent end_handle) {
  ENTER(cuEventElapsedTime)
  std::shared_ptr<Event> start, end;
  if (find_event(start_handle, &start) || find_event(end_handle, &end)) return CUDA_ERROR_INVALID_HANDLE;
  if (!start->recorded || !end->recorded) return CUDA_ERROR_INVALID_HANDLE;
  if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
  if (!start->recorded->done || !end->recorded->done) return CUDA_ERROR_NOT_READY;
  *ms = static_cast<float>(end->recorded->time_ms - start->recorded->time_ms);
  return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float* ms, CUevent start, CUevent end) { return cuEventElapsedTime_v2(ms, start, end); }

}  // extern "C"
