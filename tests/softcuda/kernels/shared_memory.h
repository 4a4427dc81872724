// Checks of shared memory: bounds, values that nobody wrote, races between threads.
#ifndef SOFTCUDA_SHARED_MEMORY_H
#define SOFTCUDA_SHARED_MEMORY_H

#include "tags.h"

namespace {

Tag writers[kSharedBytes + 16];  // one for each byte; the last vector of them reaches beyond
Tag readers[kSharedBytes + 16];
size_t allowed_dynamic;

struct StaticArray { const char* name; size_t offset, size; };
StaticArray static_arrays[64];
unsigned static_array_count;
size_t static_end;  // of the last of them
constexpr size_t kRedZone = 64;

void allow(size_t offset, size_t size) {
  for (size_t i = 0; i < size; ++i) writers[offset + i] = readers[offset + i] = 0;
  // 0xff is NaN in every floating-point format, and stands out in integers.
  memset(softcuda_dynamic_shared + offset, 0xff, size);
}

// Allows the dynamic bytes of this launch and forbids what an earlier launch had beyond them.
void set_dynamic_limit() {
  for (size_t i = launch.dynamic_bytes; i < allowed_dynamic; ++i) writers[i] = readers[i] = kForbidden;
  if (allowed_dynamic < launch.dynamic_bytes) allow(allowed_dynamic, launch.dynamic_bytes - allowed_dynamic);
  allowed_dynamic = launch.dynamic_bytes;
}

void begin_block_of_shared() {
  memset(softcuda_dynamic_shared, 0xff, launch.dynamic_bytes);
  if (static_end != 0) memset(softcuda_dynamic_shared + kDynamicBytes, 0xff, static_end - kDynamicBytes);
}

void forget_shared_tags() {
  for (size_t i = 0; i < kSharedBytes; ++i)
    if (writers[i] != kForbidden) writers[i] = readers[i] = 0;
}

// Names the place for a report: "tile + 260 of 256 bytes".
const char* shared_place(size_t offset, char* text, size_t size) {
  const StaticArray* nearest = nullptr;
  for (unsigned i = 0; i < static_array_count; ++i)
    if (static_arrays[i].offset <= offset + kRedZone / 2 && offset >= kDynamicBytes) nearest = &static_arrays[i];
  if (nearest != nullptr)
    snprintf(text, size, "%s %+td of %zu bytes", nearest->name,
             static_cast<ptrdiff_t>(offset) - static_cast<ptrdiff_t>(nearest->offset), nearest->size);
  else
    snprintf(text, size, "dynamic shared memory +%zu of %u bytes", offset, launch.dynamic_bytes);
  return text;
}

// Says what is wrong with an access that the quick checks refused.
__attribute__((noinline, cold)) void shared_fault(size_t offset, unsigned size, int access, Tag me) {
  char place[96], name[64];
  for (unsigned i = 0; i < size; ++i) {
    const Tag w = writers[offset + i], r = readers[offset + i];
    shared_place(offset + i, place, sizeof place);
    if (w == kForbidden) {
      if (first_time("shared-bounds", access_pc)) report("shared-bounds", "%s outside: %s", kVerbs[access], place);
      abandon(700);
    }
    if (access != SOFTCUDA_WRITE && w < block_tag) {
      if (first_time("shared-uninitialised", access_pc))
        report("shared-uninitialised", "%s of what no thread of the block wrote: %s", kVerbs[access], place);
      return;
    }
    const bool wrote = w >= epoch_tag && w != me;
    if (wrote || (access != SOFTCUDA_READ && r >= epoch_tag && r != me)) {
      if (first_time("shared-race", access_pc))
        report("shared-race", "%s of %s, which %s %s since the last barrier", kVerbs[access], place,
               thread_name(wrote ? w : r, name, sizeof name), wrote ? "wrote" : "read");
      return;
    }
  }
}

template <unsigned N, int Access>
inline void shared_access(size_t offset) {
  const Tag now = epoch_tag;
  const Tag me = now | (Access == SOFTCUDA_ATOMIC ? kAtomic : static_cast<Tag>(current->thread));
  if (N % 4 == 0) {
    for (unsigned i = 0; i < N; i += 4) {
      LooseTags& w = *reinterpret_cast<LooseTags*>(writers + offset + i);
      LooseTags& r = *reinterpret_cast<LooseTags*>(readers + offset + i);
      const Tags others_wrote = (w >= now) & (w != me);
      const Tags others_read = (r >= now) & (r != me);
      const Tags uninitialised = w < block_tag;
      const Tags bad = others_wrote | (Access != SOFTCUDA_WRITE ? uninitialised : Tags{}) |
                       (Access != SOFTCUDA_READ ? others_read : Tags{});
      typedef long long Pair __attribute__((vector_size(16)));
      const Pair any = reinterpret_cast<Pair>(bad);
      if (__builtin_expect((any[0] | any[1]) != 0, 0)) shared_fault(offset + i, 4, Access, me);
      if (Access == SOFTCUDA_READ)
        r = (others_read & (now | kMany)) | (~others_read & me);
      else
        w = Tags{} + me;
    }
    return;
  }
  for (unsigned i = 0; i < N; ++i) {
    Tag& w = writers[offset + i];
    Tag& r = readers[offset + i];
    const bool others_read = r >= now && r != me;
    if (__builtin_expect((w >= now && w != me) || (Access != SOFTCUDA_WRITE && w < block_tag) ||
                             (Access != SOFTCUDA_READ && others_read), 0))
      shared_fault(offset + i, 1, Access, me);
    if (Access == SOFTCUDA_READ)
      r = others_read ? now | kMany : me;
    else
      w = me;
  }
}

}  // namespace

#endif
