// Numbers that many tests use.
#ifndef ATTND_TESTS_SUPPORT_NUMBERS_H_
#define ATTND_TESTS_SUPPORT_NUMBERS_H_

#include <cstdint>
#include <limits>

namespace attnd {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr int64_t kMiB = 1 << 20;
inline constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
// Seeds all random numbers of tests that do not choose their own seed.
inline constexpr uint64_t kSeed = 20261122;

}  // namespace attnd

#endif  // ATTND_TESTS_SUPPORT_NUMBERS_H_
