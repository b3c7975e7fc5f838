// Reads and writes NumPy's .npy files that are little-endian and in C order, of
// format versions 1 to 3, whether Python 2 or 3 wrote them. For any other file,
// the error says how to convert it. Elements keep their type unless the caller
// asks for another. Files are read and written from front to back, so they may
// be pipes.
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

// Whether ReadNpy rounds the floating-point numbers of a file to another type.
struct Rounding {
  std::optional<client::DataType> to = {};  // unset = floats keep their type
  bool only_float64 = false;                // other floats keep their type
};

// ReadNpy and ReadNpyAsDouble return NOT_FOUND if there is no such file,
// RESOURCE_EXHAUSTED if the elements would need more memory than this machine
// has, and INVALID_ARGUMENT if the file is not of a kind that they read. Error
// messages begin with the path.

// Reads a tensor, which owns its elements, of float32 ('<f4'), float16 ('<f2'),
// bool ('|b1') or bfloat16. NumPy saves bfloat16 of ml_dtypes as elements of
// two opaque bytes ('<V2', '|V2'). Reads float64 ('<f8') only if `rounding`
// says what to round it to.
absl::StatusOr<client::ConstTensor> ReadNpy(const std::string& path,
                                            const Rounding& rounding = {});

// Reads the numbers of a file that a result is compared with: float32, float16,
// bfloat16 or float64.
absl::StatusOr<NpyDoubles> ReadNpyAsDouble(const std::string& path);

// Writes format version 1.0, and bfloat16 as '<V2'. Replaces a file that
// exists. If writing fails, a truncated file may remain, which no reader
// accepts.
absl::Status WriteNpy(const std::string& path, client::DataType dtype,
                      const std::vector<int64_t>& shape,
                      std::span<const std::byte> bytes);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_NPY_H_
