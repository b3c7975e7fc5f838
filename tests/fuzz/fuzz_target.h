// A fuzz target is a function that takes bytes, with inputs to start from.
// libFuzzer runs it in builds with the preset fuzz, and replay_main.cc runs it
// in all builds.
#ifndef ATTND_TESTS_FUZZ_FUZZ_TARGET_H_
#define ATTND_TESTS_FUZZ_FUZZ_TARGET_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

// libFuzzer requires this name. The function aborts if it finds an error.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace attnd::fuzz {

std::vector<std::string> Seeds();

inline void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

}  // namespace attnd::fuzz

#endif  // ATTND_TESTS_FUZZ_FUZZ_TARGET_H_
