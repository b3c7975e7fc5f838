// Arithmetic on int64 numbers that come from a client and may be of any size.
// CheckedProduct and CheckedSum return std::nullopt if the result overflows.
// The other functions return kMaxInt64 instead of a number that is larger. They
// are for sizes and counts, which are never negative.
#ifndef ATTND_BASE_CHECKED_MATH_H_
#define ATTND_BASE_CHECKED_MATH_H_

#include <cstdint>
#include <initializer_list>
#include <limits>
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

inline constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

// Returns the product of factors that are not negative, as CheckedProduct does,
// or kMaxInt64 if it does not fit.
inline int64_t SaturatingProduct(std::initializer_list<int64_t> factors) {
  return CheckedProduct(factors).value_or(kMaxInt64);
}

// Returns the sum of terms that are not negative, or kMaxInt64 if it does not
// fit.
inline int64_t SaturatingSum(std::initializer_list<int64_t> terms) {
  return CheckedSum(terms).value_or(kMaxInt64);
}

// Returns a / b rounded up. Requires a >= 0 and b > 0.
constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

// Returns the smallest multiple of b that is not below a, or kMaxInt64 if it
// does not fit. Requires a >= 0 and b > 0.
constexpr int64_t RoundUp(int64_t a, int64_t b) {
  const int64_t rest = a % b;
  if (rest == 0) return a;
  return a <= kMaxInt64 - (b - rest) ? a + (b - rest) : kMaxInt64;
}

}  // namespace attnd

#endif  // ATTND_BASE_CHECKED_MATH_H_
