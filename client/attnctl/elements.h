// Elements of any float type to floats and back.
#ifndef ATTND_CLIENT_ATTNCTL_ELEMENTS_H_
#define ATTND_CLIENT_ATTNCTL_ELEMENTS_H_

#include <cstddef>
#include <span>
#include <vector>

#include "client/types.h"

namespace attnd::attnctl {

// Exact. `type` is F32, F16 or BF16.
std::vector<float> ToFloats(client::DataType type,
                            std::span<const std::byte> elements);

// Rounds to the nearest, ties to even.
std::vector<std::byte> FromFloats(client::DataType type,
                                  std::span<const float> floats);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ELEMENTS_H_
