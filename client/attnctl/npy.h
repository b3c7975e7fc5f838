// NumPy's .npy files, as strictly as attention needs them: little-endian, in C
// order, format versions 1 to 3. Anything else is refused by name; nothing is
// converted silently.
#ifndef ATTND_CLIENT_ATTNCTL_NPY_H_
#define ATTND_CLIENT_ATTNCTL_NPY_H_

#include <cstddef>
#include <cstdint>
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

// The error for a file whose `size_bytes` do not fit into memory:
// RESOURCE_EXHAUSTED.
absl::Status NoMemoryFor(const std::string& path, int64_t size_bytes);

// A tensor: float32 ('<f4'), float16 ('<f2'), bool ('|b1'), or two opaque bytes
// an element ('<V2', '|V2'), which is what NumPy makes of a bfloat16 of
// ml_dtypes. NOT_FOUND where there is no such file, INVALID_ARGUMENT where it
// is anything else; the message names the file.
absl::StatusOr<NpyTensor> ReadNpy(const std::string& path);

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
