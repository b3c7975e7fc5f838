// Numbers for runs whose input does not matter. The same on every machine.
#ifndef ATTND_SERVER_CALLS_RANDOM_FLOATS_H_
#define ATTND_SERVER_CALLS_RANDOM_FLOATS_H_

#include <cstdint>
#include <span>

namespace attnd::server {

// Numbers in [-1, 1) that follow from `seed` alone, however many a call takes.
// A linear congruential generator (Numerical Recipes' constants): a nanosecond
// a number, and good enough where only the distribution matters.
class RandomFloats {
 public:
  explicit RandomFloats(uint32_t seed) : state_(seed) {}

  void Fill(std::span<float> out) {
    constexpr int kUnusedBits = 8;  // the weak ones, and those beyond a float
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
