#include "tests/fuzz/heap_peak.h"

#include <malloc.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

thread_local int64_t held = 0;
thread_local int64_t peak = 0;

}  // namespace

void* operator new(size_t size) {
  void* const block = std::malloc(size);
  if (block == nullptr) std::abort();
  held += static_cast<int64_t>(malloc_usable_size(block));
  peak = std::max(peak, held);
  return block;
}

// A sanitizer would provide this operator, and then our `delete` would not
// match it.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return operator new(size);
}

void operator delete(void* block) noexcept {
  held -= static_cast<int64_t>(malloc_usable_size(block));
  std::free(block);
}

void operator delete(void* block, size_t) noexcept { operator delete(block); }

namespace attnd::fuzz {

HeapPeak::HeapPeak() { held = peak = 0; }

int64_t HeapPeak::bytes() const { return peak; }

}  // namespace attnd::fuzz
