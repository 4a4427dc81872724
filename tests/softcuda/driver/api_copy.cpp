// Copies, with what CUDA promises about host memory: a copy from pageable memory has taken its bytes when the
// call returns, a copy to pageable memory is complete then; only page-locked memory is copied later.
#include "core.h"

using namespace softcuda;

namespace {

constexpr int host_poison = 0xa5;

// Everything that a copy of one, two or three dimensions is, in bytes.
struct Side {
  uintptr_t address = 0;
  bool host = false;
  size_t pitch = 0, slice = 0;
};
struct Copy {
  Side from, to;
  size_t width = 0, rows = 1, slices = 1;
  size_t span(const Side& side) const { return (slices - 1) * side.slice + (rows - 1) * side.pitch + width; }
  template <class Rows>
  void each_row(Rows use) const {
    for (size_t slice = 0; slice < slices; ++slice)
      for (size_t row = 0; row < rows; ++row)
        use(to.address + slice * to.slice + row * to.pitch, from.address + slice * from.slice + row * from.pitch);
  }
};

bool device_memory(uintptr_t address) {
  const Allocation* a = find_allocation(address);
  return a && a->kind == Kind::device;
}

// Unified addressing: what a pointer is shows in its value.
bool is_host(uintptr_t address) {
  const SoftcudaRuntime& r = state().runtime;
  return !device_memory(address) && address - r.arena_base >= r.arena_size;
}

void poison(const Copy& copy) {
  copy.each_row([&](uintptr_t to, uintptr_t) { std::memset(reinterpret_cast<void*>(to), host_poison, copy.width); });
}

CUresult transfer(Lock& lock, const char* call, Copy copy, CUstream handle, bool synchronous) {
  StreamPtr stream;
  if (const CUresult missing = find_stream(handle, &stream)) return missing;
  if (!copy.width || !copy.rows || !copy.slices) return CUDA_SUCCESS;
  for (const Side* side : {&copy.from, &copy.to}) {
    if (side->host ? device_memory(side->address) : !check_argument(call, side->address, copy.span(*side)))
      return CUDA_ERROR_INVALID_VALUE;
    if (copy.rows > 1 && side->pitch < copy.width) return CUDA_ERROR_INVALID_VALUE;
  }
  const bool from_pageable = copy.from.host && !page_locked(copy.from.address, copy.span(copy.from));
  const bool to_pageable = copy.to.host && !page_locked(copy.to.address, copy.span(copy.to));
  if ((from_pageable || to_pageable) && stream->capture) {
    stream->capture->broken = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  Work work{call, nullptr};
  std::shared_ptr<std::vector<char>> staged;
  if (from_pageable && !synchronous) {
    const char* start = reinterpret_cast<const char*>(copy.from.address);
    staged = std::make_shared<std::vector<char>>(start, start + copy.span(copy.from));
    copy.from.address = reinterpret_cast<uintptr_t>(staged->data());
  } else if (copy.from.host) {
    work.host = {copy.from.address, copy.from.address + copy.span(copy.from)};
  }
  const bool later = copy.to.host && !to_pageable && !synchronous;
  if (later) {
    work.host = {copy.to.address, copy.to.address + copy.span(copy.to)};
    // Who reads it before waiting reads poison, and not by luck the right thing from the frame before.
    if (!stream->capture && !host_range_busy(work.host)) poison(copy);
  }
  work.run = [copy, staged] {
    copy.each_row([&](uintptr_t to, uintptr_t from) { copy_bytes(to, from, copy.width); });
    return CUDA_SUCCESS;
  };
  OpPtr op;
  if (const CUresult refused = enqueue(lock, stream, std::move(work), &op)) return refused;
  const bool between_devices = !copy.from.host && !copy.to.host;
  if (op && (to_pageable || (synchronous && !between_devices))) {
    wait_for(lock, op);
    return static_cast<CUresult>(state().sticky);
  }
  return CUDA_SUCCESS;
}

Copy line(uintptr_t to, bool to_host, uintptr_t from, bool from_host, size_t bytes) {
  Copy copy;
  copy.to.address = to;
  copy.to.host = to_host;
  copy.from.address = from;
  copy.from.host = from_host;
  copy.width = bytes;
  return copy;
}

uintptr_t number(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Where one side of a described copy begins; false for arrays, which are not here.
bool place(Side* side, CUmemorytype type, const void* host, CUdeviceptr device, size_t x, size_t y, size_t z) {
  if (type == CU_MEMORYTYPE_HOST) side->address = number(host), side->host = true;
  else if (type == CU_MEMORYTYPE_DEVICE) side->address = device, side->host = false;
  else if (type == CU_MEMORYTYPE_UNIFIED) side->address = device, side->host = is_host(device);
  else return false;
  side->address += z * side->slice + y * side->pitch + x;
  return true;
}

CUresult copy_2d(Lock& lock, const char* call, const CUDA_MEMCPY2D* p, CUstream stream, bool synchronous) {
  Copy copy;
  copy.width = p->WidthInBytes;
  copy.rows = p->Height;
  copy.from.pitch = p->srcPitch ? p->srcPitch : copy.width;
  copy.to.pitch = p->dstPitch ? p->dstPitch : copy.width;
  if (!place(&copy.from, p->srcMemoryType, p->srcHost, p->srcDevice, p->srcXInBytes, p->srcY, 0) ||
      !place(&copy.to, p->dstMemoryType, p->dstHost, p->dstDevice, p->dstXInBytes, p->dstY, 0))
    return CUDA_ERROR_NOT_SUPPORTED;
  return transfer(lock, call, copy, stream, synchronous);
}

CUresult copy_3d(Lock& lock, const char* call, const CUDA_MEMCPY3D* p, CUstream stream, bool synchronous) {
  Copy copy;
  copy.width = p->WidthInBytes;
  copy.rows = p->Height;
  copy.slices = p->Depth;
  copy.from.pitch = p->srcPitch ? p->srcPitch : copy.width;
  copy.from.slice = copy.from.pitch * (p->srcHeight ? p->srcHeight : copy.rows);
  copy.to.pitch = p->dstPitch ? p->dstPitch : copy.width;
  copy.to.slice = copy.to.pitch * (p->dstHeight ? p->dstHeight : copy.rows);
  if (!place(&copy.from, p->srcMemoryType, p->srcHost, p->srcDevice, p->srcXInBytes, p->srcY, p->srcZ) ||
      !place(&copy.to, p->dstMemoryType, p->dstHost, p->dstDevice, p->dstXInBytes, p->dstY, p->dstZ))
    return CUDA_ERROR_NOT_SUPPORTED;
  return transfer(lock, call, copy, stream, synchronous);
}

}  // namespace

extern "C" {

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  ENTER(cuMemcpyHtoD)
  return transfer(entry.lock, "cuMemcpyHtoD", line(to, false, number(from), true, bytes), nullptr, true);
}

CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  ENTER(cuMemcpyDtoH)
  return transfer(entry.lock, "cuMemcpyDtoH", line(number(to), true, from, false, bytes), nullptr, true);
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  ENTER(cuMemcpyDtoD)
  return transfer(entry.lock, "cuMemcpyDtoD", line(to, false, from, false, bytes), nullptr, true);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  ENTER(cuMemcpyHtoDAsync)
  return transfer(entry.lock, "cuMemcpyHtoDAsync", line(to, false, number(from), true, bytes), stream, false);
}

CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER(cuMemcpyDtoHAsync)
  return transfer(entry.lock, "cuMemcpyDtoHAsync", line(number(to), true, from, false, bytes), stream, false);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER(cuMemcpyDtoDAsync)
  return transfer(entry.lock, "cuMemcpyDtoDAsync", line(to, false, from, false, bytes), stream, false);
}

CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D* p) {
  ENTER(cuMemcpy2D)
  return copy_2d(entry.lock, "cuMemcpy2D", p, nullptr, true);
}
CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* p) {
  ENTER(cuMemcpy2DUnaligned)
  return copy_2d(entry.lock, "cuMemcpy2DUnaligned", p, nullptr, true);
}
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* p, CUstream stream) {
  ENTER(cuMemcpy2DAsync)
  return copy_2d(entry.lock, "cuMemcpy2DAsync", p, stream, false);
}
CUresult cuMemcpy3D_v2(const CUDA_MEMCPY3D* p) {
  ENTER(cuMemcpy3D)
  return copy_3d(entry.lock, "cuMemcpy3D", p, nullptr, true);
}
CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* p, CUstream stream) {
  ENTER(cuMemcpy3DAsync)
  return copy_3d(entry.lock, "cuMemcpy3DAsync", p, stream, false);
}

}  // extern "C"
