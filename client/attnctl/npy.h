// NumPy's .npy files: little-endian, in C order, format versions 1 to 3, and
// headers as Python 2 wrote them, too. Anything else is refused with what to do
// about it; nothing is converted unless the caller asks for it. Files are read
// and written from front to back, so they may be pipes.
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

// Row-major elements, as many as `shape` says.
struct NpyTensor {
  client::DataType dtype = client::DataType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

struct NpyDoubles {
  std::vector<int64_t> shape;
  std::vector<double> values;
};

// What floats of a file are rounded to, by FromDoubles.
struct Rounding {
  std::optional<client::DataType> to = {};  // unset = they stay as they are
  bool only_float64 = false;                // other floats stay as they are
};

// Both readers end with NOT_FOUND where there is no such file, with
// RESOURCE_EXHAUSTED before they take memory that this machine does not have,
// and with INVALID_ARGUMENT where the file is anything else than expected.
// Errors begin with the path.

// A tensor: float32 ('<f4'), float16 ('<f2'), bool ('|b1'), or two opaque bytes
// an element ('<V2', '|V2'), which is what NumPy makes of a bfloat16 of
// ml_dtypes. float64 ('<f8') only where `rounding` says what it becomes.
absl::StatusOr<NpyTensor> ReadNpy(const std::string& path,
                                  const Rounding& rounding = {});

// Numbers to compare with: any of the floats above, or float64.
absl::StatusOr<NpyDoubles> ReadNpyAsDouble(const std::string& path);

// Writes format version 1.0, bfloat16 as '<V2'. Replaces what is there. Where
// writing fails, a file that is cut short may stay behind, which every reader
// refuses.
absl::Status WriteNpy(const std::string& path, client::DataType dtype,
                      const std::vector<int64_t>& shape,
                      std::span<const std::byte> bytes);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_NPY_H_
