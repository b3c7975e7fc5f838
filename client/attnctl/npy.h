// Reads and writes NumPy's .npy files: little-endian, in C order, of format
// versions 1 to 3, with headers as Python 2 or 3 writes them. An error for any
// other file says what to do about it. Elements keep their type unless the
// caller asks for another. Files are read and written from front to back, so
// they may be pipes.
#ifndef ATTND_CLIENT_ATTNCTL_NPY_H_
#define ATTND_CLIENT_ATTNCTL_NPY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/types.h"

namespace attnd::attnctl {

// The elements of a file in row-major order, as many as `shape` says.
struct NpyDoubles {
  std::vector<int64_t> shape;
  std::vector<double> values;
};

// The type that the floats of a file are rounded to, by FromDoubles.
struct Rounding {
  std::optional<client::DataType> to = {};  // unset = floats keep their type
  bool only_float64 = false;                // other floats keep their type
};

// ReadNpy and ReadNpyAsDouble return NOT_FOUND if there is no such file,
// RESOURCE_EXHAUSTED before they take memory that this machine does not have,
// and INVALID_ARGUMENT if the file is not one that they read. Errors begin with
// the path.

// Reads a tensor, which owns its elements, of float32 ('<f4'), float16 ('<f2'),
// bool ('|b1') or bfloat16. NumPy saves bfloat16 of ml_dtypes as elements of
// two opaque bytes ('<V2', '|V2'). Reads float64 ('<f8') only if `rounding`
// says what to round it to.
absl::StatusOr<client::ConstTensor> ReadNpy(const std::string& path,
                                            const Rounding& rounding = {});

// Reads numbers to compare with: any of the floats above, or float64.
absl::StatusOr<NpyDoubles> ReadNpyAsDouble(const std::string& path);

// Writes format version 1.0, and bfloat16 as '<V2'. Replaces a file that
// exists. If writing fails, a truncated file may stay behind; every reader
// refuses it.
absl::Status WriteNpy(const std::string& path, client::DataType dtype,
                      const std::vector<int64_t>& shape,
                      std::span<const std::byte> bytes);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_NPY_H_
