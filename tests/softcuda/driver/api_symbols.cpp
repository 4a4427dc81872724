// cuGetProcAddress: cuda-bindings and the CUDA runtime find every call through it. The table is generated.
#include <dlfcn.h>

#include "core.h"

struct SoftcudaSymbol {
  const char* name;
  int since;
  const char* symbol;
};
extern const SoftcudaSymbol softcuda_symbols[];

namespace {

void* own_symbol(const char* name) {
  static void* self = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<void*>(&own_symbol), &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  return dlsym(self, name);
}

}  // namespace

extern "C" {

CUresult cuGetProcAddress_v2(const char* name, void** out, int version, cuuint64_t,
                             CUdriverProcAddressQueryResult* status) {
  const char* symbol = nullptr;
  bool known = false;
  for (const SoftcudaSymbol* row = softcuda_symbols; row->name; ++row) {
    if (std::strcmp(row->name, name) != 0) continue;
    known = true;
    if (row->since <= version) symbol = row->symbol;  // rows of a name ascend
  }
  *out = symbol ? own_symbol(symbol) : nullptr;
  if (status)
    *status = *out    ? CU_GET_PROC_ADDRESS_SUCCESS
              : known ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                      : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *out ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetProcAddress(const char* name, void** out, int version, cuuint64_t flags) {
  return cuGetProcAddress_v2(name, out, version, flags, nullptr);
}

}  // extern "C"
