// Stream capture and graphs. A graph holds copies of the captured operations with the addresses they were
// captured with. Its launch is one operation of the stream; inside it the nodes run in the order of capture.
#include <algorithm>

#include "core.h"

using namespace softcuda;

namespace softcuda {

CUresult refuse_in_capture() {
  for (auto& capture : state().captures) {
    const bool here = capture->thread == std::this_thread::get_id();
    const auto mode = capture->mode;
    if (mode == CU_STREAM_CAPTURE_MODE_GLOBAL || (mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && here)) {
      capture->broken = true;
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
  }
  return CUDA_SUCCESS;
}

CUresult capture_work(const StreamPtr& stream, Work&& work) {
  Capture& capture = *stream->capture;
  if (capture.broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (!work.run) return CUDA_SUCCESS;
  auto& end = capture.ends[stream.get()];
  capture.graph.nodes.push_back({interned(work.label), std::move(work.run), end});
  end = {capture.graph.nodes.size() - 1};
  return CUDA_SUCCESS;
}

CUresult break_capture(Stream& stream) {
  stream.capture->broken = true;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult record_captured(const StreamPtr& stream, Event& event) {
  if (stream->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  event.capture = stream->capture;
  event.captured_after = stream->capture->ends[stream.get()];
  return CUDA_SUCCESS;
}

// A stream that waits for an event of a capture becomes part of it.
CUresult wait_captured(const StreamPtr& stream, Event& event) {
  if (!event.capture) return stream->capture->broken = true, CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  if (stream->capture && stream->capture != event.capture) return CUDA_ERROR_STREAM_CAPTURE_MERGE;
  if (event.capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  stream->capture = event.capture;
  auto& end = event.capture->ends[stream.get()];
  end.insert(end.end(), event.captured_after.begin(), event.captured_after.end());
  return CUDA_SUCCESS;
}

}  // namespace softcuda

namespace {

bool joined(const Capture& capture) {
  std::vector<bool> followed(capture.graph.nodes.size());
  for (auto& node : capture.graph.nodes)
    for (size_t need : node.needs) followed[need] = true;
  auto origin = capture.ends.find(capture.origin.get());
  if (origin != capture.ends.end())
    for (size_t node : origin->second) followed[node] = true;
  return std::all_of(followed.begin(), followed.end(), [](bool f) { return f; });
}

template <class Table>
auto find(Table& table, const void* handle) {
  auto found = table.find(reinterpret_cast<uintptr_t>(handle));
  return found == table.end() ? typename Table::mapped_type{} : found->second;
}

}  // namespace

extern "C" {

CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  ENTER(cuStreamBeginCapture)
  StreamPtr stream;
  if (const CUresult missing = find_stream(handle, &stream)) return missing;
  State& s = state();
  if (stream == s.legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
  auto capture = std::make_shared<Capture>();
  capture->origin = stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  stream->capture = capture;
  s.captures.push_back(capture);
  return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
  ENTER(cuStreamEndCapture)
  StreamPtr stream;
  if (const CUresult missing = find_stream(handle, &stream)) return missing;
  State& s = state();
  const auto capture = stream->capture;
  *out = nullptr;
  if (!capture) return CUDA_ERROR_ILLEGAL_STATE;
  if (capture->origin != stream) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  for (auto& entry : s.streams)
    if (entry.second->capture == capture) entry.second->capture = nullptr;
  s.per_thread->capture = s.per_thread->capture == capture ? nullptr : s.per_thread->capture;
  s.captures.erase(std::find(s.captures.begin(), s.captures.end(), capture));
  if (capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (!joined(*capture)) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  const uintptr_t graph = new_handle();
  s.graphs[graph] = std::make_shared<Graph>(capture->graph);
  *out = reinterpret_cast<CUgraph>(graph);
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph handle, unsigned long long) {
  ENTER(cuGraphInstantiate)
  const auto graph = find(state().graphs, handle);
  if (!graph) return CUDA_ERROR_INVALID_VALUE;
  const uintptr_t made = new_handle();
  state().executables[made] = std::make_shared<Graph>(*graph);
  *out = reinterpret_cast<CUgraphExec>(made);
  return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  ENTER(cuGraphLaunch)
  StreamPtr stream;
  if (const CUresult missing = find_stream(stream_handle, &stream)) return missing;
  const auto graph = find(state().executables, handle);
  if (!graph) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(entry.lock, stream, {"graph", [graph] {
                   for (auto& node : graph->nodes)
                     if (const CUresult failed = node.work()) return failed;
                   return CUDA_SUCCESS;
                 }});
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
  Entry entry("cuGraphExecDestroy", true, true);
  if (entry.error) return entry.error;
  return state().executables.erase(reinterpret_cast<uintptr_t>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphDestroy(CUgraph handle) {
  Entry entry("cuGraphDestroy", true, true);
  if (entry.error) return entry.error;
  return state().graphs.erase(reinterpret_cast<uintptr_t>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // extern "C"
