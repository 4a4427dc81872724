// Initialisation, the device, contexts, errors.
#include <cstdio>

#include "core.h"

using namespace softcuda;

namespace {

bool initialised = false;

// The same for every GPU here; what is not listed is not known, as to a driver that is too old.
const std::map<int, int> fixed_attributes = {
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
    {CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 65536},
    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
    {CU_DEVICE_ATTRIBUTE_MAX_PITCH, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536},
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 1536},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 16},
    {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1500000},
    {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 7000000},
    {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 192},
    {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 4 << 20},
    {CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT, 512},
    {CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT, 32},
    {CU_DEVICE_ATTRIBUTE_SURFACE_ALIGNMENT, 512},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_MODE, CU_COMPUTEMODE_DEFAULT},
    {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 2},
    {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
    {CU_DEVICE_ATTRIBUTE_GPU_OVERLAP, 1},
    {CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1},
    {CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT, 0},
    {CU_DEVICE_ATTRIBUTE_ECC_ENABLED, 0},
    {CU_DEVICE_ATTRIBUTE_TCC_DRIVER, 0},
    {CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, 0},
    {CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, 0},
    {CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, 0},
    {CU_DEVICE_ATTRIBUTE_MULTI_GPU_BOARD, 0},
    {CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 0},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, 0},
    {CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, 0},
    {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 0},
};

bool find_attribute(CUdevice_attribute which, int* value) {
  const Settings& s = state().settings;
  const std::map<int, int> chosen = {
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, s.shared_bytes},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, s.shared_optin},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, s.shared_optin + 1024},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, s.multiprocessors},
      {CU_DEVICE_ATTRIBUTE_INTEGRATED, s.integrated},
      {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, s.maps_host},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, s.capability / 10},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, s.capability % 10},
  };
  for (const auto* table : {&chosen, &fixed_attributes}) {
    const auto found = table->find(which);
    if (found == table->end()) continue;
    *value = found->second;
    return true;
  }
  return false;
}

struct ErrorName {
  int code;
  const char *name, *text;
};
const ErrorName errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
const ErrorName* find_error(CUresult code) {
  for (auto& error : errors)
    if (error.code == static_cast<int>(code)) return &error;
  return nullptr;
}

template <class T>
void destroy_of(T& table, uintptr_t context) {
  for (auto entry = table.begin(); entry != table.end();)
    entry = entry->second->context == context ? table.erase(entry) : std::next(entry);
}

// A context takes all that was made in it along.
void destroy_context(Lock& lock, uintptr_t handle) {
  State& s = state();
  wait_for_all(lock);
  std::vector<Allocation> mine;
  for (auto& entry : s.live)
    if (entry.second.context == handle) mine.push_back(entry.second);
  for (auto& a : mine) release(a.address, a.kind);
  destroy_of(s.streams, handle);
  destroy_of(s.events, handle);
  destroy_of(s.modules, handle);
  s.contexts.erase(handle);
  s.sticky = 0;
}

CUresult create_context(CUcontext* out, unsigned device) {
  if (device) return CUDA_ERROR_INVALID_DEVICE;
  auto context = std::make_shared<Context>();
  context->handle = new_handle();
  context->references = 1;
  state().contexts[context->handle] = context;
  context_stack.push_back(context->handle);
  *out = reinterpret_cast<CUcontext>(context->handle);
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned flags) {
  ENTER_ANYWHERE(cuInit)
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  initialised = true;
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int* count) {
  ENTER_ANYWHERE(cuDeviceGetCount)
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER_ANYWHERE(cuDeviceGet)
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (ordinal) return CUDA_ERROR_INVALID_DEVICE;
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  ENTER_ANYWHERE(cuDeviceGetName)
  std::snprintf(name, static_cast<size_t>(bytes), "%s", state().settings.device_name.c_str());
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  ENTER_ANYWHERE(cuDeviceTotalMem)
  *bytes = state().settings.total_bytes;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  ENTER_ANYWHERE(cuDeviceGetAttribute)
  if (device) return CUDA_ERROR_INVALID_DEVICE;
  return find_attribute(which, value) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
  ENTER_ANYWHERE(cuDeviceComputeCapability)
  *major = state().settings.capability / 10;
  *minor = state().settings.capability % 10;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char* text, int bytes, CUdevice) {
  return std::snprintf(text, static_cast<size_t>(bytes), "0000:00:00.0"), CUDA_SUCCESS;
}

// ---- contexts ---------------------------------------------------------------------------------------------
CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
  ENTER_ANYWHERE(cuDevicePrimaryCtxRetain)
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (device) return CUDA_ERROR_INVALID_DEVICE;
  State& s = state();
  // Its handle stays the same for the life of the process, as that of a real one does.
  if (!s.primary) s.primary = new_handle();
  auto& context = s.contexts[s.primary];
  if (!context) {
    context = std::make_shared<Context>();
    context->handle = s.primary;
    context->primary = true;
  }
  ++context->references;
  *out = reinterpret_cast<CUcontext>(s.primary);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) {
  ENTER_ANYWHERE(cuDevicePrimaryCtxRelease)
  State& s = state();
  auto context = s.contexts.find(s.primary);
  if (context == s.contexts.end()) return CUDA_ERROR_INVALID_CONTEXT;
  if (--context->second->references == 0) destroy_context(entry.lock, s.primary);
  return CUDA_SUCCESS;
}

CUresult cuCtxCreate_v2(CUcontext* out, unsigned, CUdevice device) {
  ENTER_ANYWHERE(cuCtxCreate)
  return create_context(out, static_cast<unsigned>(device));
}

#if CUDA_VERSION >= 12050
CUresult cuCtxCreate_v4(CUcontext* out, CUctxCreateParams*, unsigned, CUdevice device) {
  return cuCtxCreate_v2(out, 0, device);
}
#endif

CUresult cuCtxDestroy_v2(CUcontext context) {
  ENTER_ANYWHERE(cuCtxDestroy)
  const uintptr_t handle = reinterpret_cast<uintptr_t>(context);
  auto found = state().contexts.find(handle);
  if (found == state().contexts.end() || found->second->primary) return CUDA_ERROR_INVALID_CONTEXT;
  if (!context_stack.empty() && context_stack.back() == handle) context_stack.pop_back();
  destroy_context(entry.lock, handle);
  return CUDA_SUCCESS;
}

CUresult cuCtxDetach(CUcontext context) { return cuCtxDestroy_v2(context); }

CUresult cuCtxPushCurrent_v2(CUcontext context) {
  ENTER_ANYWHERE(cuCtxPushCurrent)
  const uintptr_t handle = reinterpret_cast<uintptr_t>(context);
  if (!state().contexts.count(handle)) return CUDA_ERROR_INVALID_CONTEXT;
  context_stack.push_back(handle);
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  ENTER_ANYWHERE(cuCtxPopCurrent)
  if (context_stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context) *context = reinterpret_cast<CUcontext>(context_stack.back());
  context_stack.pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  ENTER_ANYWHERE(cuCtxGetCurrent)
  *context = reinterpret_cast<CUcontext>(current_context());
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  ENTER(cuCtxGetDevice)
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext, unsigned* version) { return *version = 13000, CUDA_SUCCESS; }

CUresult cuCtxSynchronize() {
  ENTER(cuCtxSynchronize)
  if (const CUresult refused = refuse_in_capture()) return refused;
  wait_for_all(entry.lock);
  return static_cast<CUresult>(state().sticky);
}

// ---- errors -----------------------------------------------------------------------------------------------
CUresult cuGetErrorString(CUresult error, const char** text) {
  const ErrorName* found = find_error(error);
  *text = found ? found->text : nullptr;
  return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorName(CUresult error, const char** text) {
  const ErrorName* found = find_error(error);
  *text = found ? found->name : nullptr;
  return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuProfilerStart() { return CUDA_SUCCESS; }
CUresult cuProfilerStop() { return CUDA_SUCCESS; }

}  // extern "C"
