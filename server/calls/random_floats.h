// Random inputs for benchmarks and tests in which the exact numbers do not
// matter.
#ifndef ATTND_SERVER_CALLS_RANDOM_FLOATS_H_
#define ATTND_SERVER_CALLS_RANDOM_FLOATS_H_

#include <cstdint>
#include <span>

namespace attnd::server {

// Generates random numbers in [-1, 1). Their sequence depends only on `seed`:
// it is the same on every machine, however the numbers are divided among calls
// of Fill. This is a linear congruential generator with the constants of
// Numerical Recipes, which takes a nanosecond for each number but is of low
// quality.
class RandomFloats {
 public:
  explicit RandomFloats(uint32_t seed) : state_(seed) {}

  void Fill(std::span<float> out) {
    // The lowest bits are not random enough, and a float has no place for them.
    constexpr int kUnusedBits = 8;
    constexpr float kStep = 0x1p-23F;
    for (float& x : out) {
      state_ = state_ * 1664525U + 1013904223U;
      x = static_cast<float>(state_ >> kUnusedBits) * kStep - 1;
    }
  }

 private:
  uint32_t state_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_RANDOM_FLOATS_H_
