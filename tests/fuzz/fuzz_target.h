// What a fuzz target is: a function over bytes, and inputs to start from.
// libFuzzer runs it where the preset is fuzz, replay_main.cc everywhere.
#ifndef ATTND_TESTS_FUZZ_FUZZ_TARGET_H_
#define ATTND_TESTS_FUZZ_FUZZ_TARGET_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

// libFuzzer's name for it. Aborts on a finding.
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
