// int64 arithmetic on numbers that a client chose: an overflow is an answer,
// never undefined behaviour.
#ifndef ATTND_CORE_CHECKED_MATH_H_
#define ATTND_CORE_CHECKED_MATH_H_

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace attnd {

// The product, or nothing where it does not fit. The empty product is 1.
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

// The sum, or nothing where it does not fit.
inline std::optional<int64_t> CheckedSum(std::initializer_list<int64_t> terms) {
  int64_t sum = 0;
  for (const int64_t term : terms) {
    if (__builtin_add_overflow(sum, term, &sum)) return std::nullopt;
  }
  return sum;
}

// a / b rounded up; a >= 0, b > 0, and a + b fits an int64.
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The smallest multiple of b that is >= a.
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace attnd

#endif  // ATTND_CORE_CHECKED_MATH_H_
