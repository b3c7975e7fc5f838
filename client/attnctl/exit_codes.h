// The exit codes of the program attnctl, for scripts. `attnctl --help` prints
// the same list. The meaning of a number never changes.
#ifndef ATTND_CLIENT_ATTNCTL_EXIT_CODES_H_
#define ATTND_CLIENT_ATTNCTL_EXIT_CODES_H_

namespace attnd::attnctl {

enum ExitCode : int {
  kOk = 0,
  kCallFailed = 1,   // the server rejected the call, or the call failed
  kUsage = 2,        // an argument is wrong; nothing was sent
  kDisagrees = 3,    // the result differs from --expected by more than allowed
  kUnavailable = 4,  // there is no server, or it is not serving
  kFileError = 5,    // a file could not be read or written
  kNoAnswer = 6,     // nothing fits what estimate --max or --rate asked for
};

inline constexpr char kExitCodesHelp[] =
    "Exit codes:\n"
    "  0  success\n"
    "  1  the call failed: for example, the server rejected it, or the "
    "deadline\n"
    "     passed\n"
    "  2  an argument is wrong, and attnctl sent nothing\n"
    "  3  the result differs from --expected by more than --max-error\n"
    "  4  there is no server, or it is not serving\n"
    "  5  a file could not be read or written\n"
    "  6  estimate: not even the smallest size fits (--max), or no number of "
    "pods\n"
    "     is enough (--rate)\n";

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_EXIT_CODES_H_
