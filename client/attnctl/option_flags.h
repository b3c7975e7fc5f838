// Adds command-line flags to the commands of attnctl: for numbers, names and
// files.
#ifndef ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_
#define ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/attnctl/npy.h"
#include "client/types.h"

namespace attnd::attnctl {

// Adds a flag that takes a number. If `target` is a vector, the flag takes
// several numbers with commas between them. The flag refuses NaN, numbers that
// the type cannot hold, and fractions if the type is an integer. The error
// names the flag. option_flags.cc instantiates this function for the types that
// attnctl uses.
template <typename Number>
CLI::Option* AddNumberFlag(CLI::App& command, const std::string& name,
                           Number& target, const std::string& help);

// Reads a number of bytes: "1073741824", "512MiB" or "1.5 GB". The units KiB,
// MiB, GiB and TiB (or Ki, Mi, Gi and Ti) are powers of 1024, and KB, MB, GB
// and TB are powers of 1000. Rounds down to whole bytes. Returns
// INVALID_ARGUMENT if the text is something else, and OUT_OF_RANGE if an int64
// cannot hold the number.
absl::StatusOr<int64_t> ParseBytes(absl::string_view text);

// Adds a flag that takes a number of bytes as ParseBytes reads it, from 1 to
// `max`.
CLI::Option* AddBytesFlag(CLI::App& command, const std::string& name,
                          int64_t& target, const std::string& help,
                          int64_t max = std::numeric_limits<int64_t>::max());

// A flag that takes the path of a file.
struct FileFlag {
  std::string name;  // "--query"
  std::string path;  // empty unless the flag is given

  // Adds the flag. `names` is its name, or a short and a long name:
  // "-q,--query".
  CLI::Option* Add(CLI::App& command, const std::string& names,
                   const std::string& help);
  // Returns `status` with the name of the flag at the beginning of its message.
  // `status` must be an error of client/attnctl/npy.h, which names the path but
  // not the flag.
  absl::Status Error(const absl::Status& status) const;
};

// Adds a flag for each option of base/attention_options.def that is not a
// tensor. TensorFlags adds those for tensors.
void AddOptionFlags(CLI::App& command, client::AttentionOptions& options);

// Adds a flag that takes a type: f32, f16 or bf16.
CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         client::DataType& type, const std::string& help);
CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         std::optional<client::DataType>& type,
                         const std::string& help);

// Returns the name of a type in these flags, for example "bf16".
std::string TypeName(client::DataType type);

// Adds the flag --transport, which takes inline, stream or shared-memory.
void AddTransportFlag(CLI::App& command, client::Transport& transport);

// The flags --bias and --mask, which take files.
class TensorFlags {
 public:
  void Add(CLI::App& command);

  // Reads the files of the flags that were given into `options`. Rounds a bias
  // of float64 to `dtype`. Returns an error that names the flag and the file.
  absl::Status Load(std::optional<client::DataType> dtype,
                    client::AttentionOptions& options) const;

 private:
  FileFlag bias_file_;
  FileFlag mask_file_;
};

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_
