// What a call on .npy files answers: room for it, the files that it goes to,
// and the comparison with what was expected.
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

// One array of an answer.
struct Answer {
  const char* name;
  FileFlag file = {};      // where it goes
  FileFlag expected = {};  // what it is compared with
  client::DataType dtype = client::DataType::kF32;
  std::vector<int64_t> shape = {};
  std::shared_ptr<std::byte[]> room = {};
  size_t size_bytes = 0;

  // Makes room, which takes memory only where it is written to: a server
  // refuses most of what is too large. RESOURCE_EXHAUSTED where there is no
  // such room.
  absl::Status Allocate();
  // Whether it fits a message that the client would receive.
  absl::Status CheckFitsMessage(int64_t max_message_bytes) const;

  std::span<std::byte> bytes() const { return {room.get(), size_bytes}; }
  client::Elements elements() { return {dtype, bytes()}; }
};

// What all commands with answers report beside them.
struct AnswerReport {
  client::ExecutionStats stats;
  absl::Duration elapsed;
  double max_error = 0;
  bool json = false;
};

// The flags --max-error and --json.
void AddReportFlags(CLI::App& command, AnswerReport& report);

// What --help says of files that are pipes.
inline constexpr char kPipesHelp[] =
    "Each file may be a pipe, <(...) or /dev/stdin. Files are read in the "
    "order "
    "in\n"
    "which their flags are listed above, then --bias and --mask. Answers may "
    "be\n"
    "written to a pipe or to /dev/stdout. Where one is written to standard "
    "output,\n"
    "the report goes to standard error.\n";

// Refuses answers that would overwrite each other, or a file that one is
// compared with: kUsage. Where an answer goes to standard output, the report
// goes to standard error from now on. Call it before anything is read or sent.
ExitCode CheckFiles(const std::vector<Answer>& answers, Session& session);

// Writes what `answers` ask for, then compares it, then prints the report.
ExitCode Finish(const std::vector<Answer>& answers, const AnswerReport& report,
                Session& session);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ANSWERS_H_
