// Handles the tensors that the server returns to a command that reads .npy
// files: allocates memory for them, writes them to files, and compares them
// with files.
#ifndef ATTND_CLIENT_ATTNCTL_ANSWERS_H_
#define ATTND_CLIENT_ATTNCTL_ANSWERS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/option_flags.h"
#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

// One tensor of an answer.
struct Answer {
  const char* name;        // in reports and errors, such as "output"
  FileFlag file = {};      // the file to write it to
  FileFlag expected = {};  // the file to compare it with
  client::DataType dtype = client::DataType::kF32;
  std::vector<int64_t> shape = {};
  std::shared_ptr<std::byte[]> memory = {};
  size_t size_bytes = 0;

  // Allocates memory for the answer, according to `dtype` and `shape`. Returns
  // RESOURCE_EXHAUSTED if there is not enough. This costs little even if the
  // server then refuses the call, because the operating system provides a page
  // only when it is written to.
  absl::Status Allocate();
  // Returns RESOURCE_EXHAUSTED if the answer is larger than
  // `max_message_bytes`, the size of the largest message that the client
  // receives.
  absl::Status CheckFitsMessage(int64_t max_message_bytes) const;

  std::span<std::byte> bytes() const { return {memory.get(), size_bytes}; }
  client::Elements elements() { return {dtype, bytes()}; }
};

// What a command prints about its call, and in which form.
struct AnswerReport {
  client::ExecutionStats stats;
  absl::Duration elapsed;  // how long the call took
  double max_error = 0;    // the largest difference at which answers agree
  bool json = false;       // whether to print JSON
};

// Adds the flags --max-error and --json.
void AddReportFlags(CLI::App& command, AnswerReport& report);

// The text of --help about files that are pipes.
inline constexpr char kPipesHelp[] =
    "A file may be a pipe, <(...) or /dev/stdin. Files are read in the order "
    "of\n"
    "the flags above, then --bias and --mask. Answers may be written to a pipe "
    "or\n"
    "to /dev/stdout. If one is written to standard output, the report goes to\n"
    "standard error.\n";

// Checks the files to which answers are written. Call this before anything is
// read or sent. Prints an error and returns kUsage if an answer would overwrite
// another answer, or a file that an answer is compared with. If an answer is
// written to standard output, directs the report to standard error.
ExitCode CheckFiles(const std::vector<Answer>& answers, Session& session);

// Writes the answers to their files, compares them with the expected files, and
// prints the report. Returns kDisagrees if an answer differs by more than
// AnswerReport::max_error.
ExitCode Finish(const std::vector<Answer>& answers, const AnswerReport& report,
                Session& session);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ANSWERS_H_
