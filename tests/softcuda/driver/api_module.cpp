// Modules, functions, launches. A module image is a shared object that a stand-in for nvcc made.
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "core.h"

using namespace softcuda;

namespace {

// cuModuleLoadData is not told how long its image is; the headers say it.
size_t elf_bytes(const char* image) {
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(image);
  size_t end = header->e_shoff + size_t{header->e_shnum} * header->e_shentsize;
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(image + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i)
    if (sections[i].sh_type != SHT_NOBITS) end = std::max(end, size_t{sections[i].sh_offset + sections[i].sh_size});
  return end;
}

CUresult load(const void* data, CUmodule* out) {
  if (!data) return CUDA_ERROR_INVALID_VALUE;
  const char* image = static_cast<const char*>(data);
  if (std::memcmp(image, ELFMAG, SELFMAG) != 0)
    return std::strncmp(image, "//", 2) == 0 || std::strncmp(image, ".version", 8) == 0 ? CUDA_ERROR_INVALID_PTX
                                                                                       : CUDA_ERROR_INVALID_IMAGE;
  if (reinterpret_cast<const Elf64_Ehdr*>(image)->e_machine != EM_X86_64 &&
      reinterpret_cast<const Elf64_Ehdr*>(image)->e_machine != EM_AARCH64)
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  // A name of its own for every load: dlopen takes a known name for the library that it knows.
  const char* folder = std::getenv("TMPDIR");
  static int count = 0;
  const std::string path = std::string(folder ? folder : "/tmp") + "/softcuda-" + std::to_string(getpid()) + "-" +
                           std::to_string(++count) + ".so";
  std::ofstream(path, std::ios::binary).write(image, static_cast<std::streamsize>(elf_bytes(image)));
  auto module = std::make_shared<Module>();
  module->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  unlink(path.c_str());
  if (!module->library) {
    std::fprintf(stderr, "softcuda: %s\n", dlerror());
    return CUDA_ERROR_INVALID_IMAGE;
  }
  module->describe = reinterpret_cast<decltype(module->describe)>(dlsym(module->library, "softcuda_describe"));
  module->launch = reinterpret_cast<decltype(module->launch)>(dlsym(module->library, "softcuda_launch"));
  module->context = current_context();
  if (!module->describe || !module->launch) return CUDA_ERROR_INVALID_IMAGE;
  const uintptr_t handle = new_handle();
  state().modules[handle] = module;
  *out = reinterpret_cast<CUmodule>(handle);
  return CUDA_SUCCESS;
}

CUresult find_function(CUfunction handle, std::shared_ptr<Function>* out) {
  auto found = state().functions.find(reinterpret_cast<uintptr_t>(handle));
  if (found == state().functions.end()) return CUDA_ERROR_INVALID_HANDLE;
  *out = found->second;
  return CUDA_SUCCESS;
}

struct Launch {
  unsigned grid[3], block[3], shared;
};

CUresult check_launch(const Function& f, const Launch& launch) {
  const unsigned grid_limits[3] = {2147483647u, 65535u, 65535u}, block_limits[3] = {1024, 1024, 64};
  for (int i = 0; i < 3; ++i)
    if (!launch.grid[i] || launch.grid[i] > grid_limits[i] || !launch.block[i] || launch.block[i] > block_limits[i])
      return CUDA_ERROR_INVALID_VALUE;
  const size_t threads = size_t{launch.block[0]} * launch.block[1] * launch.block[2];
  if (threads > 1024) return CUDA_ERROR_INVALID_VALUE;
  if (threads > f.kernel.max_threads) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  return launch.shared + f.kernel.shared_bytes > f.dynamic_limit ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

// The parameters are copied now. `extra` is a list of pairs that ends with CU_LAUNCH_PARAM_END.
CUresult unpack(const Function& f, void** parameters, void** extra, std::vector<char>* out) {
  const size_t expected = f.kernel.parameter_bytes;
  if (parameters && extra) return CUDA_ERROR_INVALID_VALUE;
  if (parameters) {  // each kernel here takes one structure
    const char* first = static_cast<const char*>(parameters[0]);
    out->assign(first, first + expected);
    return CUDA_SUCCESS;
  }
  const char* buffer = nullptr;
  size_t bytes = 0;
  for (void** item = extra; item && *item != CU_LAUNCH_PARAM_END; item += 2) {
    if (*item == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = static_cast<const char*>(item[1]);
    else if (*item == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<size_t*>(item[1]);
    else return CUDA_ERROR_INVALID_VALUE;
  }
  if (bytes != expected) {
    report("argument", "kernel " + f.name + " takes " + std::to_string(expected) +
                           " bytes of parameters and was given " + std::to_string(bytes));
    return CUDA_ERROR_INVALID_VALUE;
  }
  out->assign(buffer, buffer + bytes);
  return CUDA_SUCCESS;
}

// Runs a launch that was queued.
CUresult execute(const Function& f, const Launch& how, const std::vector<char>& parameters) {
  State& s = state();
  {
    Lock lock(s.mutex);
    for (const std::string& name : {"kernel " + f.name, std::string("kernel")})
      if (const int error = injected_error(name.c_str())) return static_cast<CUresult>(error);
    s.runtime.counters = &s.counters[f.name];
    ++s.runtime.counters->launches;
  }
  const char* name = f.name.c_str();
  const int result = f.module->launch(name, how.grid, how.block, how.shared, parameters.data(), &s.runtime);
  s.runtime.where = nullptr;
  return static_cast<CUresult>(result);
}

CUresult launch(Lock& lock, const std::shared_ptr<Function>& f, const Launch& how, CUstream handle,
                std::vector<char> parameters) {
  StreamPtr stream;
  if (const CUresult missing = find_stream(handle, &stream)) return missing;
  if (const CUresult refused = check_launch(*f, how)) return refused;
  auto buffer = std::make_shared<std::vector<char>>(std::move(parameters));
  Work work{"kernel " + f->name, [f, how, buffer] { return execute(*f, how, *buffer); }};
  return enqueue(lock, stream, std::move(work));
}

}  // namespace

softcuda::Module::~Module() {
  if (library) dlclose(library);
}

#define FIND_FUNCTION(handle)           \
  std::shared_ptr<Function> function;   \
  if (const CUresult missing = find_function(handle, &function)) return missing;

extern "C" {

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  ENTER(cuModuleLoadData)
  return load(image, module);
}

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  ENTER(cuModuleLoadData)
  return load(image, module);
}

CUresult cuModuleLoad(CUmodule* module, const char* path) {
  ENTER(cuModuleLoad)
  std::ifstream file(path, std::ios::binary);
  if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
  std::stringstream content;
  content << file.rdbuf();
  return load(content.str().c_str(), module);
}

CUresult cuModuleUnload(CUmodule handle) {
  Entry entry("cuModuleUnload", true, true);
  if (entry.error) return entry.error;
  State& s = state();
  auto found = s.modules.find(reinterpret_cast<uintptr_t>(handle));
  if (found == s.modules.end()) return CUDA_ERROR_INVALID_HANDLE;
  const ModulePtr module = found->second;  // what is queued keeps it until it ran
  for (auto function = s.functions.begin(); function != s.functions.end();)
    function = function->second->module == module ? s.functions.erase(function) : std::next(function);
  s.modules.erase(reinterpret_cast<uintptr_t>(handle));
  return static_cast<CUresult>(s.sticky);
}

CUresult cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
  ENTER(cuModuleGetFunction)
  State& s = state();
  auto module = s.modules.find(reinterpret_cast<uintptr_t>(handle));
  if (module == s.modules.end()) return CUDA_ERROR_INVALID_HANDLE;
  for (auto& known : s.functions)
    if (known.second->module == module->second && known.second->name == name)
      return *out = reinterpret_cast<CUfunction>(known.first), CUDA_SUCCESS;
  auto function = std::make_shared<Function>();
  if (!module->second->describe(name, &function->kernel)) return CUDA_ERROR_NOT_FOUND;
  function->module = module->second;
  function->name = name;
  const uintptr_t made = new_handle();
  s.functions[made] = function;
  *out = reinterpret_cast<CUfunction>(made);
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction handle) {
  ENTER(cuFuncGetAttribute)
  FIND_FUNCTION(handle)
  const SoftcudaKernel& kernel = function->kernel;
  const unsigned capability = static_cast<unsigned>(state().settings.capability);
  const std::map<int, unsigned> values = {
      {CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, kernel.max_threads},
      {CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, kernel.shared_bytes},
      {CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, function->dynamic_limit - kernel.shared_bytes},
      {CU_FUNC_ATTRIBUTE_BINARY_VERSION, capability},
      {CU_FUNC_ATTRIBUTE_PTX_VERSION, capability},
      {CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES, 0},
      {CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, 0},
      {CU_FUNC_ATTRIBUTE_CACHE_MODE_CA, 0},
      {CU_FUNC_ATTRIBUTE_NUM_REGS, 32},  // not known here; the real compiler tells
  };
  const auto found = values.find(which);
  if (found == values.end()) return CUDA_ERROR_INVALID_VALUE;
  *value = static_cast<int>(found->second);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
  ENTER(cuFuncSetAttribute)
  FIND_FUNCTION(handle)
  if (which == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  const unsigned wanted = static_cast<unsigned>(value) + function->kernel.shared_bytes;
  if (value < 0 || wanted > static_cast<unsigned>(state().settings.shared_optin)) return CUDA_ERROR_INVALID_VALUE;
  function->dynamic_limit = wanted;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void** parameters, void** extra) {
  ENTER(cuLaunchKernel)
  FIND_FUNCTION(handle)
  std::vector<char> buffer;
  if (const CUresult refused = unpack(*function, parameters, extra, &buffer)) return refused;
  return launch(entry.lock, function, {{gx, gy, gz}, {bx, by, bz}, shared}, stream, std::move(buffer));
}

// ---- launches from before CUDA 4, which PyCUDA's Function.__call__ uses for a grid of two dimensions ----------
CUresult cuFuncSetBlockShape(CUfunction handle, int x, int y, int z) {
  ENTER(cuFuncSetBlockShape)
  FIND_FUNCTION(handle)
  const int shape[3] = {x, y, z};
  for (int i = 0; i < 3; ++i) function->block[i] = static_cast<unsigned>(shape[i]);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetSharedSize(CUfunction handle, unsigned bytes) {
  ENTER(cuFuncSetSharedSize)
  FIND_FUNCTION(handle)
  function->shared = bytes;
  return CUDA_SUCCESS;
}

CUresult cuParamSetSize(CUfunction handle, unsigned bytes) {
  ENTER(cuParamSetSize)
  FIND_FUNCTION(handle)
  function->parameters.resize(bytes);
  return CUDA_SUCCESS;
}

CUresult cuParamSetv(CUfunction handle, int offset, void* data, unsigned bytes) {
  ENTER(cuParamSetv)
  FIND_FUNCTION(handle)
  auto& buffer = function->parameters;
  if (buffer.size() < static_cast<size_t>(offset) + bytes) buffer.resize(static_cast<size_t>(offset) + bytes);
  std::memcpy(buffer.data() + offset, data, bytes);
  return CUDA_SUCCESS;
}

CUresult cuLaunchGridAsync(CUfunction handle, int width, int height, CUstream stream) {
  ENTER(cuLaunchGridAsync)
  FIND_FUNCTION(handle)
  if (function->parameters.size() != function->kernel.parameter_bytes) return CUDA_ERROR_INVALID_VALUE;
  const unsigned* block = function->block;
  const unsigned columns = static_cast<unsigned>(width), rows = static_cast<unsigned>(height);
  const Launch how = {{columns, rows, 1}, {block[0], block[1], block[2]}, function->shared};
  return launch(entry.lock, function, how, stream, function->parameters);
}

CUresult cuLaunchGrid(CUfunction handle, int width, int height) {
  return cuLaunchGridAsync(handle, width, height, nullptr);
}
CUresult cuLaunch(CUfunction handle) { return cuLaunchGridAsync(handle, 1, 1, nullptr); }

}  // extern "C"
