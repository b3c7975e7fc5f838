// NumPy's .npy files, as strictly as attention needs them: little-endian
// float32 or float64 in C order, format versions 1 to 3. Anything else is
// refused by name; nothing is converted silently.
#ifndef ATTND_CLIENT_ATTNCTL_NPY_H_
#define ATTND_CLIENT_ATTNCTL_NPY_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace attnd::attnctl {

template <typename T>
struct NpyArray {
  std::vector<int64_t> shape;
  std::vector<T> values;  // row-major, as many as `shape` says
};

// A float32 array. NOT_FOUND where there is no such file, INVALID_ARGUMENT
// where it is anything else; the message names the file.
absl::StatusOr<NpyArray<float>> ReadNpyFloat32(const std::string& path);

// A float32 or float64 array, as doubles.
absl::StatusOr<NpyArray<double>> ReadNpyAsDouble(const std::string& path);

// Writes format version 1.0. Replaces what is there. Where writing fails, a
// file that is cut short may stay behind, which every reader refuses.
absl::Status WriteNpyFloat32(const std::string& path,
                             const std::vector<int64_t>& shape,
                             std::span<const float> values);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_NPY_H_
