// Memory: allocation, page-locked memory, pointers, fills. Copies are in api_copy.cpp.
#include "core.h"

using namespace softcuda;

namespace {

CUresult fill(Lock& lock, const char* call, CUdeviceptr to, size_t pitch, unsigned value, size_t width, size_t columns,
              size_t rows, CUstream handle) {
  StreamPtr stream;
  if (const CUresult missing = find_stream(handle, &stream)) return missing;
  if (!columns || !rows) return CUDA_SUCCESS;
  if (to % width || (rows > 1 && pitch < columns * width)) return CUDA_ERROR_INVALID_VALUE;
  if (!check_argument(call, to, (rows - 1) * pitch + columns * width)) return CUDA_ERROR_INVALID_VALUE;
  Work work{call, [=] {
              for (size_t row = 0; row < rows; ++row) fill_bytes(to + row * pitch, &value, width, columns);
              return CUDA_SUCCESS;
            }};
  return enqueue(lock, stream, std::move(work));
}

}  // namespace

extern "C" {

CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
  ENTER(cuMemAlloc)
  if (const CUresult refused = refuse_in_capture()) return refused;
  uintptr_t address = 0;
  const CUresult result = allocate(bytes, Kind::device, 0, &address);
  if (!result) *out = address;
  return result;
}

CUresult cuMemAllocPitch_v2(CUdeviceptr* out, size_t* pitch, size_t width, size_t height, unsigned) {
  *pitch = (width + 511) & ~size_t{511};
  return cuMemAlloc_v2(out, *pitch * height);
}

// A real one may wait for the device or not; nothing may rely on it, so operations that still use the memory
// are reported when they run.
CUresult cuMemFree_v2(CUdeviceptr address) {
  Entry entry("cuMemFree", true, true);
  if (entry.error) return entry.error;
  if (!address) return CUDA_SUCCESS;
  const CUresult result = release(address, Kind::device);
  return result ? result : static_cast<CUresult>(state().sticky);
}

CUresult cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
  ENTER(cuMemHostAlloc)
  if (const CUresult refused = refuse_in_capture()) return refused;
  if (flags > 7) return CUDA_ERROR_INVALID_VALUE;
  uintptr_t address = 0;
  const CUresult result = allocate(bytes, Kind::host, flags, &address);
  if (!result) *out = reinterpret_cast<void*>(address);
  return result;
}

CUresult cuMemFreeHost(void* address) {
  Entry entry("cuMemFreeHost", true, true);
  if (entry.error) return entry.error;
  const CUresult result = release(reinterpret_cast<uintptr_t>(address), Kind::host);
  return result ? result : static_cast<CUresult>(state().sticky);
}

CUresult cuMemHostRegister_v2(void* data, size_t bytes, unsigned flags) {
  ENTER(cuMemHostRegister)
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  if (!data || !bytes || flags > 15) return CUDA_ERROR_INVALID_VALUE;
  for (auto& entry : state().registered)
    if (entry.first < address + bytes && address < entry.first + entry.second.bytes)
      return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  Allocation a;
  a.address = a.first = address;
  a.bytes = bytes;
  a.end = address + bytes;
  a.kind = Kind::registered;
  a.flags = flags;
  a.number = ++state().allocations;
  a.context = current_context();
  state().registered[address] = a;
  return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void* data) {
  Entry entry("cuMemHostUnregister", true, true);
  if (entry.error) return entry.error;
  auto found = state().registered.find(reinterpret_cast<uintptr_t>(data));
  if (found == state().registered.end()) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  if (host_range_busy({found->second.first, found->second.end}))
    report("use-after-free", "host memory is unregistered while an operation in a queue still uses it");
  state().registered.erase(found);
  return static_cast<CUresult>(state().sticky);
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* data, unsigned flags) {
  ENTER(cuMemHostGetDevicePointer)
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  if (flags || !state().settings.maps_host || !page_locked(address, 1)) return CUDA_ERROR_INVALID_VALUE;
  *out = address;
  return CUDA_SUCCESS;
}

CUresult cuMemHostGetFlags(unsigned* flags, void* data) {
  ENTER(cuMemHostGetFlags)
  const Allocation* a = find_allocation(reinterpret_cast<uintptr_t>(data));
  if (!a || a->kind == Kind::device) return CUDA_ERROR_INVALID_VALUE;
  *flags = a->flags;
  return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
  ENTER(cuMemGetInfo)
  *total = state().settings.total_bytes;
  *free = *total > state().device_bytes ? *total - state().device_bytes : 0;
  return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  ENTER(cuMemGetAddressRange)
  const Allocation* a = find_allocation(address);
  if (!a) return CUDA_ERROR_NOT_FOUND;
  if (base) *base = a->address;
  if (bytes) *bytes = a->bytes;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* out, CUpointer_attribute which, CUdeviceptr address) {
  ENTER(cuPointerGetAttribute)
  const Allocation* a = find_allocation(address);
  if (!a) return CUDA_ERROR_INVALID_VALUE;
  switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: return *static_cast<uintptr_t*>(out) = a->context, CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(out) = a->kind == Kind::device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: return *static_cast<uintptr_t*>(out) = address, CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (a->kind == Kind::device) return CUDA_ERROR_INVALID_VALUE;
      return *static_cast<uintptr_t*>(out) = address, CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: return *static_cast<int*>(out) = 0, CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: return *static_cast<int*>(out) = 0, CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: return *static_cast<uintptr_t*>(out) = a->address, CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: return *static_cast<size_t*>(out) = a->bytes, CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
}

// ---- fills: none of them waits for the device -------------------------------------------------------------
#define FILL(bits, type, width)                                                                              \
  CUresult cuMemsetD##bits##Async(CUdeviceptr to, type value, size_t count, CUstream stream) {               \
    ENTER(cuMemsetD##bits##Async)                                                                            \
    return fill(entry.lock, "cuMemsetD" #bits, to, 0, value, width, count, 1, stream);                       \
  }                                                                                                          \
  CUresult cuMemsetD##bits##_v2(CUdeviceptr to, type value, size_t count) {                                  \
    ENTER(cuMemsetD##bits)                                                                                   \
    return fill(entry.lock, "cuMemsetD" #bits, to, 0, value, width, count, 1, nullptr);                      \
  }                                                                                                          \
  CUresult cuMemsetD2D##bits##Async(CUdeviceptr to, size_t pitch, type value, size_t columns, size_t rows,   \
                                    CUstream stream) {                                                       \
    ENTER(cuMemsetD2D##bits##Async)                                                                          \
    return fill(entry.lock, "cuMemsetD2D" #bits, to, pitch, value, width, columns, rows, stream);            \
  }                                                                                                          \
  CUresult cuMemsetD2D##bits##_v2(CUdeviceptr to, size_t pitch, type value, size_t columns, size_t rows) {   \
    ENTER(cuMemsetD2D##bits)                                                                                 \
    return fill(entry.lock, "cuMemsetD2D" #bits, to, pitch, value, width, columns, rows, nullptr);           \
  }
FILL(8, unsigned char, 1)
FILL(16, unsigned short, 2)
FILL(32, unsigned int, 4)

}  // extern "C"
