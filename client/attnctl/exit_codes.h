// How attnctl ends, for scripts to branch on. `attnctl --help` prints the same
// list; a number never changes its meaning.
#ifndef ATTND_CLIENT_ATTNCTL_EXIT_CODES_H_
#define ATTND_CLIENT_ATTNCTL_EXIT_CODES_H_

namespace attnd::attnctl {

enum ExitCode : int {
  kOk = 0,
  kCallFailed = 1,   // the server refused the call, or it failed on the way
  kUsage = 2,        // the arguments are wrong; nothing was sent
  kDisagrees = 3,    // the result is further from --expected than allowed
  kUnavailable = 4,  // no server there, or it is not serving
  kFileError = 5,    // a file could not be read or written
};

inline constexpr char kExitCodesHelp[] =
    "Exit codes:\n"
    "  0  ok\n"
    "  1  the call failed: the server refused it, or a deadline passed\n"
    "  2  wrong arguments; nothing was sent\n"
    "  3  the result is further from --expected than --max-error allows\n"
    "  4  no server there, or it is not serving\n"
    "  5  a file could not be read or written\n";

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_EXIT_CODES_H_
