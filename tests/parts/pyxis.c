/*
 * A stand-in for pyxis, in its place within Slurm: a SPANK plugin that runs the importer before the
 * tasks of a step, as the job's user, and releases what it had twice, the last time without the
 * node's name. The image is what STAND_IN_IMAGE of the job's environment names; a task finds the
 * path in STAND_IN_PATH. The argument of the plugin is the importer.
 *
 * Only prototypes of slurm/spank.h are written out here: no package of Slurm's is needed to build it.
 */
#define _GNU_SOURCE
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct spank_handle *spank_t;
extern int spank_getenv(spank_t, const char *, char *, int);
extern int spank_setenv(spank_t, const char *, const char *, int);
extern int spank_remote(spank_t);
extern void slurm_error(const char *, ...);

const char plugin_name[] = "stand_in";
const char plugin_type[] = "spank";
const unsigned int plugin_version = SLURM_RELEASE;
const unsigned int spank_plugin_version = 1;

static char image[2048], importer[4096];
static char fields[4][4200];
static const char *const names[] = {"HPCIMG_CONF", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURMD_NODENAME"};
static uid_t uid;
static gid_t gid;

/* Run the importer; its output goes into said. */
static int run(const char *verb, int environment, char *said, size_t size)
{
    char *argv[] = {importer, (char *)verb, verb[0] == 'g' ? image : NULL, NULL};
    char *envp[5] = {0};
    int status, streams[2];
    ssize_t more;
    size_t length = 0;

    for (int i = 0; i < environment; i++)
        envp[i] = fields[i];
    if (pipe(streams))
        return -1;
    pid_t child = fork();
    if (child == 0) {
        freopen("/dev/null", "r", stdin);
        dup2(streams[1], 1);
        dup2(streams[1], 2);
        close(streams[0]);
        if (seteuid(0) || setgroups(1, &gid) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
            _exit(126);
        execve(importer, argv, envp);
        _exit(127);
    }
    close(streams[1]);
    while (length < size - 1 && (more = read(streams[0], said + length, size - 1 - length)) > 0)
        length += more;
    said[length] = '\0';
    said[strcspn(said, "\n")] = '\0';
    close(streams[0]);
    return waitpid(child, &status, 0) < 0 ? -1 : status;
}

int slurm_spank_user_init(spank_t sp, int ac, char **av)
{
    char said[8192], value[4096];

    if (ac < 1 || spank_getenv(sp, "STAND_IN_IMAGE", image, sizeof(image)))
        return 0;
    snprintf(importer, sizeof(importer), "%s", av[0]);
    uid = geteuid();
    gid = getegid();
    for (int i = 0; i < 4; i++) {
        if (spank_getenv(sp, names[i], value, sizeof(value)))
            value[0] = '\0';
        snprintf(fields[i], sizeof(fields[i]), "%s=%s", names[i], value);
    }
    if (run("get", 4, said, sizeof(said))) {
        slurm_error("stand-in: %s", said);
        image[0] = '\0';
        return -1;
    }
    return spank_setenv(sp, "STAND_IN_PATH", said, 1) ? -1 : 0;
}

int slurm_spank_exit(spank_t sp, int ac, char **av)
{
    char said[8192];

    (void)ac;
    (void)av;
    if (spank_remote(sp) != 1 || !image[0])
        return 0;
    run("release", 4, said, sizeof(said));
    run("release", 3, said, sizeof(said));
    return 0;
}
