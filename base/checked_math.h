// Arithmetic on int64 numbers that come from a client and may be of any size.
// CheckedProduct and CheckedSum return std::nullopt if the result overflows.
#ifndef ATTND_BASE_CHECKED_MATH_H_
#define ATTND_BASE_CHECKED_MATH_H_

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace attnd {

// Returns the product, or nullopt if it does not fit an int64. Returns 1 if
// there are no factors, and 0 if any factor is 0, even if the others overflow.
inline std::optional<int64_t> CheckedProduct(
    std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  bool overflow = false;
  for (const int64_t factor : factors) {
    if (factor == 0) return 0;
    overflow |= __builtin_mul_overflow(product, factor, &product);
  }
  if (overflow) return std::nullopt;
  return product;
}

// Returns the sum of the terms, which are added in order. Returns nullopt if
// the sum or an intermediate sum does not fit an int64.
inline std::optional<int64_t> CheckedSum(std::initializer_list<int64_t> terms) {
  int64_t sum = 0;
  for (const int64_t term : terms) {
    if (__builtin_add_overflow(sum, term, &sum)) return std::nullopt;
  }
  return sum;
}

// Returns a / b rounded up. Requires a >= 0 and b > 0. Does not check for
// overflow: a + b must fit an int64.
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Returns the smallest multiple of b that is not below a. Requires a >= 0 and
// b > 0. Does not check for overflow: a + b and the result must fit an int64.
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace attnd

#endif  // ATTND_BASE_CHECKED_MATH_H_
