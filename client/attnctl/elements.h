// Converts elements of any float type to floats, and doubles to elements.
#ifndef ATTND_CLIENT_ATTNCTL_ELEMENTS_H_
#define ATTND_CLIENT_ATTNCTL_ELEMENTS_H_

#include <cstddef>
#include <span>
#include <vector>

#include "client/types.h"

namespace attnd::attnctl {

// Converts elements of `type` to floats, which is exact. `type` must be F32,
// F16 or BF16.
std::vector<float> ToFloats(client::DataType type,
                            std::span<const std::byte> elements);

// Converts doubles to elements of `type`, which must be F32, F16 or BF16.
// Rounds each number once, to the nearest element and ties to even, as IEEE 754
// specifies. A number that is too large becomes an infinity, and a NaN stays a
// NaN.
std::vector<std::byte> FromDoubles(client::DataType type,
                                   std::span<const double> doubles);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ELEMENTS_H_
