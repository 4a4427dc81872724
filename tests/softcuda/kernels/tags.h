// Tags say who touched a byte last and when: epoch << 11 | thread. An epoch lasts from barrier to barrier, and
// blocks run one after the other, so whatever lies between two barriers of one block has an epoch of its own;
// as numbers are not used again, tags need no clearing.
#ifndef SOFTCUDA_TAGS_H
#define SOFTCUDA_TAGS_H

#include "state.h"

namespace {

using Tag = int32_t;
constexpr int kThreadBits = 11;
constexpr Tag kThreadMask = (1 << kThreadBits) - 1;
constexpr Tag kMany = 1024;    // instead of a thread: several threads read
constexpr Tag kAtomic = 1025;  // instead of a thread: atomic operations, which do not race with each other
constexpr Tag kForbidden = INT32_MAX;
constexpr Tag kLastEpoch = 1 << 19;  // leaves as many for the block that passes it

Tag epoch_tag;   // of the present epoch, thread 0
Tag block_tag;   // of the block's first epoch
Tag launch_tag;  // of the launch's first epoch

void next_epoch() { epoch_tag += 1 << kThreadBits; }

const char* thread_name(Tag tag, char* text, size_t size) {
  const Tag thread = tag & kThreadMask;
  if (thread == kMany) return "several threads";
  if (thread == kAtomic) return "an atomic operation";
  const uint3 t = position(static_cast<unsigned>(thread));
  snprintf(text, size, "thread (%u,%u,%u)", t.x, t.y, t.z);
  return text;
}

// Four tags at a time, because most accesses are of four bytes.
typedef Tag Tags __attribute__((vector_size(16)));
typedef Tag LooseTags __attribute__((vector_size(16), aligned(4), may_alias));

const char* const kVerbs[] = {"read", "write", "atomic operation"};  // by SoftcudaAccess

}  // namespace

#endif
