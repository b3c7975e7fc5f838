// How attnctl reads flags: numbers, names and files. AddOptionFlags adds a flag
// for each option of base/attention_options.h.
#ifndef ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_
#define ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "client/attnctl/npy.h"
#include "client/types.h"

namespace attnd::attnctl {

// Adds a flag that takes a number, or several with commas between them if
// `target` is a vector. The flag refuses NaN, numbers that the type cannot
// hold, and fractions for a whole number; the error names the flag.
// option_flags.cc instantiates this for the types that attnctl uses.
template <typename Number>
CLI::Option* AddNumberFlag(CLI::App& command, const std::string& name,
                           Number& target, const std::string& help);

// A flag that takes the path of a file.
struct FileFlag {
  std::string name;  // "--query"
  std::string path;  // empty unless the flag is given

  // `names` may begin with a short one: "-q,--query".
  CLI::Option* Add(CLI::App& command, const std::string& names,
                   const std::string& help);
  // Returns an error of npy.h, which begins with the path, with the flag in
  // front.
  absl::Status Error(const absl::Status& status) const;
};

// Adds a flag for each option that is not a tensor.
void AddOptionFlags(CLI::App& command, client::AttentionOptions& options);

// --NAME=f32|f16|bf16.
CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         client::DataType& type, const std::string& help);
CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         std::optional<client::DataType>& type,
                         const std::string& help);

// --transport=inline|stream|shared-memory.
void AddTransportFlag(CLI::App& command, client::Transport& transport);

// The flags --bias and --mask, which take files.
class TensorFlags {
 public:
  void Add(CLI::App& command);

  // Reads the files into `options`. Rounds a float64 bias to `dtype`.
  absl::Status Load(std::optional<client::DataType> dtype,
                    client::AttentionOptions& options) const;

 private:
  FileFlag bias_file_;
  FileFlag mask_file_;
};

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_
