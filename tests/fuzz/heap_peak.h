// How much heap a piece of code held at its worst, of what `operator new` gave:
// protobuf, Abseil and we allocate through nothing else.
#ifndef ATTND_TESTS_FUZZ_HEAP_PEAK_H_
#define ATTND_TESTS_FUZZ_HEAP_PEAK_H_

#include <cstdint>

namespace attnd::fuzz {

// Counts this thread from now on; one at a time.
class HeapPeak {
 public:
  HeapPeak();
  int64_t bytes() const;
};

}  // namespace attnd::fuzz

#endif  // ATTND_TESTS_FUZZ_HEAP_PEAK_H_
