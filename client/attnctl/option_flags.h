// How attnctl reads flags: numbers, names and files. Also the flags that are
// AttentionOptions, named as its fields are.
#ifndef ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_
#define ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "client/attnctl/npy.h"
#include "client/types.h"

namespace attnd::attnctl {

// A flag that takes a number, or, where `target` is a vector, numbers with
// commas between them. Refuses NaN, numbers that the type cannot hold, and
// fractions for a whole number; the error names the flag.
// `Number` is one that option_flags.cc instantiates.
template <typename Number>
CLI::Option* AddNumberFlag(CLI::App& command, const std::string& name,
                           Number& target, const std::string& help);

// A flag that names a file.
struct FileFlag {
  std::string name;  // "--query"
  std::string path;  // empty where the flag was not given

  // `names` may begin with a short one: "-q,--query".
  CLI::Option* Add(CLI::App& command, const std::string& names,
                   const std::string& help);
  // An error of npy.h, which begins with the path, with the flag before it.
  absl::Status Error(const absl::Status& status) const;
};

// Every option but those that are tensors.
void AddOptionFlags(CLI::App& command, client::AttentionOptions& options);

// --NAME=f32|f16|bf16.
CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         client::DataType& type, const std::string& help);
CLI::Option* AddTypeFlag(CLI::App& command, const std::string& name,
                         std::optional<client::DataType>& type,
                         const std::string& help);

// --transport=inline|stream|shared-memory.
void AddTransportFlag(CLI::App& command, client::Transport& transport);

// --bias and --mask as files. Holds what the options refer to.
class TensorFlags {
 public:
  void Add(CLI::App& command);

  // Reads the files that were given and puts them into `options`. A float64
  // bias is rounded to `dtype`.
  absl::Status Load(std::optional<client::DataType> dtype,
                    client::AttentionOptions& options);

 private:
  FileFlag bias_file_;
  FileFlag mask_file_;
  NpyTensor bias_;
  NpyTensor mask_;
};

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_OPTION_FLAGS_H_
