// Measures the largest amount of memory that a piece of code holds from
// `operator new`. Protobuf, Abseil and attnd allocate only with this operator.
#ifndef ATTND_TESTS_FUZZ_HEAP_PEAK_H_
#define ATTND_TESTS_FUZZ_HEAP_PEAK_H_

#include <cstdint>

namespace attnd::fuzz {

// Counts the memory of this thread from now on. Only one object can count at a
// time.
class HeapPeak {
 public:
  HeapPeak();
  int64_t bytes() const;
};

}  // namespace attnd::fuzz

#endif  // ATTND_TESTS_FUZZ_HEAP_PEAK_H_
