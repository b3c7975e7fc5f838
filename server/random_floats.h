// Numbers for runs whose input does not matter. The same on every machine.
#ifndef ATTND_SERVER_RANDOM_FLOATS_H_
#define ATTND_SERVER_RANDOM_FLOATS_H_

#include <cstdint>
#include <random>
#include <span>

namespace attnd::server {

// Fills with numbers in [-1, 1) that follow from `seed` alone.
inline void FillRandom(std::span<float> out, uint32_t seed) {
  std::minstd_rand generator(seed + 1);
  constexpr double kRange = 2.0 / std::minstd_rand::max();
  for (float& x : out) {
    x = static_cast<float>(static_cast<double>(generator()) * kRange - 1);
  }
}

}  // namespace attnd::server

#endif  // ATTND_SERVER_RANDOM_FLOATS_H_
