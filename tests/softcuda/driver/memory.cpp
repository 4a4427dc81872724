// The arena of device and page-locked memory: red zones, poison, quarantine, and the check of every access.
#pragma GCC optimize("O3")  // the loops over shadow memory

#include <sys/mman.h>

#include <algorithm>

#include "core.h"

namespace softcuda {
namespace {

constexpr size_t arena_bytes = size_t{24} << 30;
constexpr size_t red_zone = 512, alignment = 512;  // cuMemAlloc aligns to 256 bytes at least
constexpr size_t quarantine_limit = size_t{16} << 20, quarantine_count = 512;
constexpr size_t poison_limit = size_t{64} << 20;  // of a larger allocation only so much is filled
constexpr int device_poison = 0xff, host_poison = 0xa5;  // 0xff..: NaN as float16 and as float32
constexpr uint8_t good = SOFTCUDA_ALLOCATED | SOFTCUDA_INITIALISED;

void* reserve(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, bytes, MADV_NOHUGEPAGE);  // a touched byte shall cost one small page
  madvise(memory, bytes, MADV_DONTDUMP);
  return memory;
}

void report_to_runtime(SoftcudaRuntime*, const char* kind, const char* text) {
  Lock lock(state().mutex);
  const char* where = state().runtime.where ? state().runtime.where() : nullptr;
  report(kind, std::string(text) + (where ? std::string(" at ") + where : ""));
}

bool open_arena() {
  State& s = state();
  SoftcudaRuntime& r = s.runtime;
  if (r.arena_base) return true;
  void* parts[4] = {reserve(arena_bytes), reserve(arena_bytes), reserve(4 * arena_bytes), reserve(4 * arena_bytes)};
  for (void* part : parts)
    if (!part) return false;
  r.abi = SOFTCUDA_ABI;
  r.arena_base = reinterpret_cast<uintptr_t>(parts[0]);
  r.arena_size = arena_bytes;
  r.state = static_cast<uint8_t*>(parts[1]);
  r.writers = static_cast<uint32_t*>(parts[2]);
  r.readers = static_cast<uint32_t*>(parts[3]);
  r.check = check_access;
  r.report = report_to_runtime;
  s.spare[r.arena_base] = arena_bytes;
  return true;
}

// Zeroes memory and gives whole pages back to the system.
void forget(void* start, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(start), end = first + bytes;
  const uintptr_t page_first = (first + 4095) & ~uintptr_t{4095}, page_end = end & ~uintptr_t{4095};
  if (page_end <= page_first) {
    std::memset(start, 0, bytes);
    return;
  }
  std::memset(start, 0, page_first - first);
  madvise(reinterpret_cast<void*>(page_first), page_end - page_first, MADV_DONTNEED);
  std::memset(reinterpret_cast<void*>(page_end), 0, end - page_end);
}

void give_back(const Allocation& a) {
  State& s = state();
  const size_t offset = a.first - s.runtime.arena_base, bytes = a.end - a.first;
  forget(reinterpret_cast<void*>(a.first), bytes);
  forget(s.runtime.state + offset, bytes);
  forget(s.runtime.writers + offset, 4 * bytes);
  forget(s.runtime.readers + offset, 4 * bytes);
  auto here = s.spare.emplace(a.first, bytes).first;
  auto next = std::next(here);
  if (next != s.spare.end() && here->first + here->second == next->first) {
    here->second += next->second;
    s.spare.erase(next);
  }
  if (here == s.spare.begin()) return;
  auto before = std::prev(here);
  if (before->first + before->second == here->first) {
    before->second += here->second;
    s.spare.erase(here);
  }
}

}  // namespace

CUresult allocate(size_t bytes, Kind kind, unsigned flags, uintptr_t* address) {
  State& s = state();
  if (!bytes) return CUDA_ERROR_INVALID_VALUE;
  if (!open_arena()) return CUDA_ERROR_OUT_OF_MEMORY;
  if (kind == Kind::device && s.device_bytes + bytes > s.settings.total_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  const size_t needed = ((bytes + alignment - 1) & ~(alignment - 1)) + 2 * red_zone;
  auto stretch = std::find_if(s.spare.begin(), s.spare.end(), [&](auto& entry) { return entry.second >= needed; });
  if (stretch == s.spare.end()) return CUDA_ERROR_OUT_OF_MEMORY;
  Allocation a;
  a.first = stretch->first;
  a.end = a.first + needed;
  a.address = a.first + red_zone;
  a.bytes = bytes;
  a.kind = kind;
  a.flags = flags;
  a.number = ++s.allocations;
  a.context = current_context();
  if (stretch->second > needed) s.spare[a.end] = stretch->second - needed;
  s.spare.erase(stretch);
  std::memset(reinterpret_cast<void*>(a.address), kind == Kind::device ? device_poison : host_poison,
              std::min(bytes, poison_limit));
  // The host writes page-locked memory unseen, so all of it counts as initialised.
  std::memset(s.runtime.state + (a.address - s.runtime.arena_base),
              kind == Kind::device ? SOFTCUDA_ALLOCATED : good, bytes);
  if (kind == Kind::device) s.device_bytes += bytes;
  s.live[a.address] = a;
  *address = a.address;
  return CUDA_SUCCESS;
}

CUresult release(uintptr_t address, Kind kind) {
  State& s = state();
  auto entry = s.live.find(address);
  if (entry == s.live.end() || entry->second.kind != kind) {
    report("free", "memory is freed that is not allocated: " + describe_address(address));
    return CUDA_ERROR_INVALID_VALUE;
  }
  const Allocation a = entry->second;
  s.live.erase(entry);
  if (kind == Kind::device) s.device_bytes -= a.bytes;
  std::memset(reinterpret_cast<void*>(a.address), kind == Kind::device ? device_poison : host_poison,
              std::min(a.bytes, poison_limit));
  std::memset(s.runtime.state + (a.address - s.runtime.arena_base), SOFTCUDA_FREED, a.bytes);
  s.quarantine.push_back(a);
  s.quarantine_bytes += a.end - a.first;
  while (s.quarantine_bytes > quarantine_limit || s.quarantine.size() > quarantine_count) {
    const Allocation oldest = s.quarantine.front();
    s.quarantine.pop_front();
    s.quarantine_bytes -= oldest.end - oldest.first;
    give_back(oldest);
  }
  return CUDA_SUCCESS;
}

const Allocation* find_allocation(uintptr_t address) {
  State& s = state();
  for (auto* table : {&s.live, &s.registered}) {
    auto after = table->upper_bound(address);
    if (after == table->begin()) continue;
    const Allocation& a = std::prev(after)->second;
    if (address < a.address + a.bytes) return &a;
  }
  return nullptr;
}

bool page_locked(uintptr_t address, size_t bytes) {
  const Allocation* a = find_allocation(address);
  return a && a->kind != Kind::device && address + bytes <= a->address + a->bytes;
}

static std::string about(const Allocation& a, uintptr_t address, const char* what) {
  const std::string name = std::string(what) + (a.kind == Kind::device ? "device" : "page-locked") + " allocation #" +
                           std::to_string(a.number) + " of " + std::to_string(a.bytes) + " bytes";
  const uintptr_t end = a.address + a.bytes;
  if (address < a.address) return std::to_string(a.address - address) + " bytes before " + name;
  if (address >= end) return std::to_string(address - end) + " bytes after the end of " + name;
  return "byte " + std::to_string(address - a.address) + " of " + name;
}

std::string describe_address(uintptr_t address) {
  State& s = state();
  char number[32];
  std::snprintf(number, sizeof number, "0x%zx, ", static_cast<size_t>(address));
  for (auto a = s.quarantine.rbegin(); a != s.quarantine.rend(); ++a)
    if (a->address <= address && address < a->address + a->bytes) return number + about(*a, address, "freed ");
  const Allocation* nearest = nullptr;
  size_t best = 1 << 20;
  for (auto* table : {&s.live, &s.registered})
    for (auto& entry : *table) {
      const Allocation& a = entry.second;
      const size_t distance = address < a.address ? a.address - address
                              : address >= a.address + a.bytes ? address - a.address - a.bytes : 0;
      if (distance < best) best = distance, nearest = &a;
    }
  return number + (nearest ? about(*nearest, address, "") : std::string("near no allocation"));
}

// ---- checks -----------------------------------------------------------------------------------------------
namespace {

const char* const verbs[] = {"read", "write", "atomic update"};

std::string position() {
  const char* where = state().runtime.where ? state().runtime.where() : nullptr;
  return where ? std::string(" at ") + where : "";
}

int fault(const char* kind, int access, uintptr_t address, size_t bytes, const std::string& more = "") {
  report(kind, std::string(verbs[access]) + " of " + std::to_string(bytes) + " bytes at " + describe_address(address) +
                   more + position());
  return SOFTCUDA_WRONG;
}

// Whether the operation with this id is known to have finished before the current one.
bool ordered(uint32_t id) {
  const Op* op = state().current;
  if (!op || !id) return true;
  const uint32_t slot = id >> 24;
  return slot < op->clock.size() && (op->clock[slot] & 0xffffff) >= (id & 0xffffff);
}

// First byte whose last user is neither ordered before this operation nor this operation itself.
size_t unordered(const uint32_t* users, size_t bytes, uint32_t operation) {
  uint32_t trusted = 0;  // the last one found to be ordered
  size_t i = 0;
  while (i < bytes) {
    const size_t end = std::min(bytes, i + 64);  // without a branch, so that the compiler takes many at once
    uint32_t strangers = 0;
    for (size_t k = i; k < end; ++k) strangers += (users[k] != 0) & (users[k] != operation) & (users[k] != trusted);
    for (; strangers && i < end; ++i) {
      if (users[i] == operation || users[i] == trusted) continue;
      if (!ordered(users[i])) return i;
      trusted = users[i];
    }
    i = end;
  }
  return bytes;
}

std::string user(uint32_t id) {
  const auto& entry = state().recent[recent_place(id)];
  return entry.first == id ? entry.second : "an operation of another stream";
}

const char* const wrote = "\" wrote in another stream; nothing makes this one wait";
const char* const read = "\" read in another stream; nothing makes this one wait";

int check_races(uintptr_t address, size_t bytes, int access) {
  SoftcudaRuntime& r = state().runtime;
  const size_t offset = address - r.arena_base;
  size_t at = unordered(r.writers + offset, bytes, r.operation);
  if (at < bytes)
    return fault("stream-race", access, address + at, 1,
                 ", which \"" + user(r.writers[offset + at]) + wrote);
  if (access == SOFTCUDA_READ) return SOFTCUDA_OK;
  at = unordered(r.readers + offset, bytes, r.operation);
  if (at < bytes)
    return fault("stream-race", access, address + at, 1,
                 ", which \"" + user(r.readers[offset + at]) + read);
  return SOFTCUDA_OK;
}

bool all_good(const uint8_t* bits, size_t count, int access) {
  const uint8_t needed = access == SOFTCUDA_WRITE ? SOFTCUDA_ALLOCATED : good;
  unsigned wrong = 0;
  for (size_t i = 0; i < count; ++i) wrong += (bits[i] & needed) != needed;
  return wrong == 0;
}

int check_locked(uintptr_t address, size_t bytes, int access) {
  SoftcudaRuntime& r = state().runtime;
  const size_t offset = address - r.arena_base;
  if (offset >= r.arena_size || bytes > r.arena_size - offset) {
    if (page_locked(address, bytes)) return SOFTCUDA_OK;  // registered host memory, nothing to keep for it
    fault("illegal-address", access, address, bytes);
    return SOFTCUDA_UNMAPPED;
  }
  uint8_t* bits = r.state + offset;
  for (size_t i = 0; i < bytes; ++i) {
    if (i % 64 == 0 && all_good(bits + i, std::min<size_t>(64, bytes - i), access)) {
      i += 63;
      continue;
    }
    if (bits[i] == good || (access == SOFTCUDA_WRITE && bits[i] == SOFTCUDA_ALLOCATED)) continue;
    if (bits[i] & SOFTCUDA_FREED) return fault("use-after-free", access, address + i, bytes - i);
    if (!(bits[i] & SOFTCUDA_ALLOCATED)) return fault("out-of-bounds", access, address + i, bytes - i);
    fault("uninitialised", access, address + i, bytes - i);
    std::memset(bits, good, bytes);  // told once
    break;
  }
  const int verdict = check_races(address, bytes, access);
  if (access != SOFTCUDA_READ) {
    std::memset(bits, good, bytes);
    std::fill_n(r.writers + offset, bytes, r.operation);
  }
  if (access != SOFTCUDA_WRITE) std::fill_n(r.readers + offset, bytes, r.operation);
  return verdict;
}

}  // namespace

int check_access(SoftcudaRuntime* r, uintptr_t address, size_t bytes, int access) {
  if (!(r->checks & SOFTCUDA_CHECK_GLOBAL) && address - r->arena_base < r->arena_size) return SOFTCUDA_OK;
  Lock lock(state().mutex);
  return check_locked(address, bytes, access);
}

bool check_argument(const char* call, uintptr_t address, size_t bytes) {
  const Allocation* a = find_allocation(address);
  if (a && bytes <= a->address + a->bytes - address) return true;
  report("argument", std::string(call) + " of " + std::to_string(bytes) + " bytes at " + describe_address(address));
  return false;
}

// A copy within the device takes along what is not initialised: reading it later is the fault.
void copy_bytes(uintptr_t to, uintptr_t from, size_t bytes) {
  SoftcudaRuntime& r = state().runtime;
  const bool from_arena = from - r.arena_base < r.arena_size, to_arena = to - r.arena_base < r.arena_size;
  {
    Lock lock(state().mutex);
    std::vector<uint8_t> bits;
    if (from_arena && to_arena) {
      uint8_t* source = r.state + (from - r.arena_base);
      bits.assign(source, source + bytes);
      for (size_t i = 0; i < bytes; ++i)
        if (source[i] == SOFTCUDA_ALLOCATED) source[i] = good;  // for the check of everything else
    }
    if (from_arena) check_locked(from, bytes, SOFTCUDA_READ);
    if (to_arena) check_locked(to, bytes, SOFTCUDA_WRITE);
    if (!bits.empty()) {
      uint8_t* target = r.state + (to - r.arena_base);
      const bool device = find_allocation(to) && find_allocation(to)->kind == Kind::device;
      std::copy(bits.begin(), bits.end(), r.state + (from - r.arena_base));
      for (size_t i = 0; i < bytes; ++i)
        if (device && bits[i] == SOFTCUDA_ALLOCATED && target[i] == good) target[i] = SOFTCUDA_ALLOCATED;
    }
  }
  std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
}

void fill_bytes(uintptr_t to, const void* pattern, size_t width, size_t count) {
  if (!count) return;
  check_access(&state().runtime, to, width * count, SOFTCUDA_WRITE);
  if (width == 1) {
    std::memset(reinterpret_cast<void*>(to), *static_cast<const unsigned char*>(pattern), count);
    return;
  }
  for (size_t i = 0; i < count; ++i) std::memcpy(reinterpret_cast<char*>(to) + i * width, pattern, width);
}

}  // namespace softcuda
