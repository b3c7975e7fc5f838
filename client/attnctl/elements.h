// Converts elements of any float type to floats, and doubles to elements.
#ifndef ATTND_CLIENT_ATTNCTL_ELEMENTS_H_
#define ATTND_CLIENT_ATTNCTL_ELEMENTS_H_

#include <cstddef>
#include <span>
#include <vector>

#include "client/types.h"

namespace attnd::attnctl {

// Converts without rounding. `type` is F32, F16 or BF16.
std::vector<float> ToFloats(client::DataType type,
                            std::span<const std::byte> elements);

// Rounds once, to the nearest element and ties to even, as IEEE 754 says. A
// number that is too large becomes an infinity, and NaN stays NaN. `type` is
// F32, F16 or BF16.
std::vector<std::byte> FromDoubles(client::DataType type,
                                   std::span<const double> doubles);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ELEMENTS_H_
