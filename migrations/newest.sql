-- Written by `python -m migrations.newest`: what all migrations make of an empty SQLite file.
-- An empty line ends a statement.

CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)

CREATE TABLE files (
	id VARCHAR(36) NOT NULL,
	public_id TEXT,
	kind VARCHAR(16) NOT NULL,
	owner VARCHAR(300) NOT NULL,
	filename TEXT NOT NULL,
	mime_type VARCHAR(255) NOT NULL,
	purpose VARCHAR(64) NOT NULL,
	bytes BIGINT NOT NULL,
	sha256 VARCHAR(64),
	target_model_names JSON NOT NULL,
	state VARCHAR(16) NOT NULL,
	status VARCHAR(16) NOT NULL,
	status_details TEXT,
	expires_at DATETIME,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL, is_kept BOOLEAN DEFAULT 0 NOT NULL, copies_expire_at DATETIME, key_id VARCHAR(36),
	CONSTRAINT pk_files PRIMARY KEY (id)
)

CREATE INDEX ix_files_created ON files (created_at, id)

CREATE INDEX ix_files_owner_created ON files (owner, created_at, id)

CREATE INDEX ix_files_state_updated ON files (state, updated_at)

CREATE TABLE users (
	user_id VARCHAR(255) NOT NULL,
	id_folded VARCHAR(765) NOT NULL,
	email VARCHAR(320),
	email_folded VARCHAR(960),
	alias VARCHAR(255),
	role VARCHAR(32) NOT NULL,
	models JSON NOT NULL,
	metadata JSON NOT NULL,
	blocked BOOLEAN NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL, rpm_limit INTEGER, upload_rpm_limit INTEGER, max_parallel_requests INTEGER, max_files INTEGER, max_bytes_stored BIGINT,
	CONSTRAINT pk_users PRIMARY KEY (user_id),
	CONSTRAINT uq_users_email_folded UNIQUE (email_folded),
	CONSTRAINT uq_users_id_folded UNIQUE (id_folded)
)

CREATE INDEX ix_users_created ON users (created_at, user_id)

CREATE TABLE copies (
	id VARCHAR(36) NOT NULL,
	file_id VARCHAR(36) NOT NULL,
	model_name VARCHAR(255),
	deployment_id VARCHAR(255) NOT NULL,
	provider VARCHAR(64) NOT NULL,
	deployment_file_id TEXT,
	state VARCHAR(16) NOT NULL,
	attempts INTEGER NOT NULL,
	last_error TEXT,
	expires_at DATETIME,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL, upstream_model VARCHAR(255), upload_key VARCHAR(32), first_file_id TEXT, next_look_at DATETIME, lease_until DATETIME, sent_bytes BIGINT,
	CONSTRAINT pk_copies PRIMARY KEY (id),
	CONSTRAINT fk_copies_file_id_files FOREIGN KEY(file_id) REFERENCES files (id) ON DELETE CASCADE,
	CONSTRAINT uq_copies_file_id_deployment_id UNIQUE (file_id, deployment_id)
)

CREATE INDEX ix_copies_deployment_file_id ON copies (deployment_file_id)

CREATE INDEX ix_copies_model_name ON copies (model_name, file_id)

CREATE INDEX ix_copies_state ON copies (state)

CREATE TABLE keys (
	id VARCHAR(36) NOT NULL,
	token VARCHAR(64) NOT NULL,
	previous_token VARCHAR(64),
	previous_expires_at DATETIME,
	key_name VARCHAR(32) NOT NULL,
	alias VARCHAR(255),
	alias_scope VARCHAR(255) NOT NULL,
	user_id VARCHAR(255),
	owner VARCHAR(300) NOT NULL,
	models JSON NOT NULL,
	metadata JSON NOT NULL,
	blocked BOOLEAN NOT NULL,
	expires_at DATETIME,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	created_by VARCHAR(300) NOT NULL, rpm_limit INTEGER, upload_rpm_limit INTEGER, max_parallel_requests INTEGER, max_files INTEGER, max_bytes_stored BIGINT,
	CONSTRAINT pk_keys PRIMARY KEY (id),
	CONSTRAINT fk_keys_user_id_users FOREIGN KEY(user_id) REFERENCES users (user_id) ON DELETE CASCADE,
	CONSTRAINT uq_keys_alias_alias_scope UNIQUE (alias, alias_scope),
	CONSTRAINT uq_keys_token UNIQUE (token)
)

CREATE INDEX ix_keys_created ON keys (created_at, id)

CREATE INDEX ix_keys_previous_token ON keys (previous_token)

CREATE INDEX ix_keys_user_created ON keys (user_id, created_at, id)

CREATE TABLE uploads (
	id VARCHAR(32) NOT NULL,
	owner VARCHAR(300) NOT NULL,
	filename TEXT NOT NULL,
	mime_type VARCHAR(255) NOT NULL,
	purpose VARCHAR(64) NOT NULL,
	bytes BIGINT NOT NULL,
	file_expires_after_seconds INTEGER,
	selector JSON NOT NULL,
	status VARCHAR(16) NOT NULL,
	part_ids JSON NOT NULL,
	file_id TEXT,
	expires_at DATETIME NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL, key_id VARCHAR(36),
	CONSTRAINT pk_uploads PRIMARY KEY (id)
)

CREATE INDEX ix_uploads_status_expires ON uploads (status, expires_at)

CREATE TABLE upload_parts (
	id VARCHAR(37) NOT NULL,
	upload_id VARCHAR(32) NOT NULL,
	bytes BIGINT NOT NULL,
	sha256 VARCHAR(64) NOT NULL,
	created_at DATETIME NOT NULL,
	CONSTRAINT pk_upload_parts PRIMARY KEY (id),
	CONSTRAINT fk_upload_parts_upload_id_uploads FOREIGN KEY(upload_id) REFERENCES uploads (id) ON DELETE CASCADE
)

CREATE INDEX ix_upload_parts_content ON upload_parts (upload_id, sha256, bytes)

CREATE TABLE jobs (
	id VARCHAR(36) NOT NULL,
	type VARCHAR(16) NOT NULL,
	kind VARCHAR(16) NOT NULL,
	public_id TEXT,
	owner VARCHAR(300) NOT NULL,
	model_name VARCHAR(255),
	deployment_id VARCHAR(255) NOT NULL,
	provider VARCHAR(64) NOT NULL,
	upstream_id VARCHAR(512),
	upstream_input_id TEXT NOT NULL,
	input_uuid VARCHAR(36),
	validation_uuid VARCHAR(36),
	request JSON NOT NULL,
	snapshot JSON NOT NULL,
	status VARCHAR(32) NOT NULL,
	state VARCHAR(16) NOT NULL,
	looks INTEGER NOT NULL,
	next_look_at DATETIME NOT NULL,
	lease_until DATETIME,
	last_error TEXT,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	CONSTRAINT pk_jobs PRIMARY KEY (id),
	CONSTRAINT uq_jobs_deployment_id_type_upstream_id UNIQUE (deployment_id, type, upstream_id)
)

CREATE INDEX ix_jobs_due ON jobs (state, next_look_at)

CREATE INDEX ix_jobs_input ON jobs (input_uuid, state)

CREATE INDEX ix_jobs_owner_created ON jobs (owner, type, created_at, id)

CREATE INDEX ix_jobs_upstream_id ON jobs (upstream_id)

CREATE INDEX ix_jobs_validation ON jobs (validation_uuid, state)

CREATE TABLE tuned_models (
	id VARCHAR(36) NOT NULL,
	owner VARCHAR(300) NOT NULL,
	model_name VARCHAR(255) NOT NULL,
	deployment_id VARCHAR(255) NOT NULL,
	job_id VARCHAR(36) NOT NULL,
	created_at DATETIME NOT NULL,
	CONSTRAINT pk_tuned_models PRIMARY KEY (id),
	CONSTRAINT fk_tuned_models_job_id_jobs FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE,
	CONSTRAINT uq_tuned_models_owner_model_name UNIQUE (owner, model_name)
)

CREATE INDEX ix_files_expires_at ON files (expires_at)

CREATE INDEX ix_copies_first_file_id ON copies (first_file_id)

CREATE INDEX ix_copies_next_look_at ON copies (next_look_at)

CREATE TABLE audit (
	id VARCHAR(36) NOT NULL,
	at DATETIME NOT NULL,
	actor VARCHAR(255),
	role VARCHAR(32) NOT NULL,
	"key" VARCHAR(12),
	address VARCHAR(64),
	action VARCHAR(32) NOT NULL,
	target TEXT,
	status INTEGER NOT NULL,
	request_id VARCHAR(128),
	fields JSON NOT NULL,
	bytes BIGINT,
	CONSTRAINT pk_audit PRIMARY KEY (id)
)

CREATE INDEX ix_audit_at ON audit (at, id)

CREATE INDEX ix_audit_actor_at ON audit (actor, at)

CREATE TABLE audit_sweeps (
	"before" DATETIME NOT NULL,
	CONSTRAINT pk_audit_sweeps PRIMARY KEY ("before")
)

CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END

CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
    WHEN NOT EXISTS (SELECT 1 FROM audit_sweeps WHERE OLD.at < before)
    BEGIN SELECT RAISE(ABORT, 'audit rows are never removed before their time'); END

CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit
    WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END

CREATE INDEX ix_files_key_id ON files (key_id)

CREATE INDEX ix_uploads_owner ON uploads (owner, status)

CREATE INDEX ix_uploads_key_id ON uploads (key_id)

CREATE TABLE request_counts (
	subject VARCHAR(300) NOT NULL,
	kind VARCHAR(16) NOT NULL,
	began_at DATETIME NOT NULL,
	count INTEGER NOT NULL,
	CONSTRAINT pk_request_counts PRIMARY KEY (subject, kind)
)

CREATE INDEX ix_request_counts_began_at ON request_counts (began_at)

CREATE TABLE running_requests (
	id VARCHAR(36) NOT NULL,
	subject VARCHAR(300) NOT NULL,
	lease_until DATETIME NOT NULL,
	CONSTRAINT pk_running_requests PRIMARY KEY (id, subject)
)

CREATE INDEX ix_running_requests_subject ON running_requests (subject, lease_until)

CREATE INDEX ix_running_requests_lease_until ON running_requests (lease_until)

CREATE TABLE single_requests (
	id VARCHAR(64) NOT NULL,
	fingerprint VARCHAR(64) NOT NULL,
	object_uuid VARCHAR(36) NOT NULL,
	answer TEXT,
	lease_until DATETIME NOT NULL,
	expires_at DATETIME NOT NULL,
	CONSTRAINT pk_single_requests PRIMARY KEY (id)
)

CREATE INDEX ix_single_requests_expires_at ON single_requests (expires_at)

CREATE TABLE console_sessions (
	id VARCHAR(64) NOT NULL,
	key_hash VARCHAR(64),
	master_mac VARCHAR(64),
	created_at DATETIME NOT NULL,
	seen_at DATETIME NOT NULL,
	expires_at DATETIME NOT NULL,
	CONSTRAINT pk_console_sessions PRIMARY KEY (id)
)

CREATE INDEX ix_console_sessions_key_hash ON console_sessions (key_hash)

CREATE INDEX ix_console_sessions_expires_at ON console_sessions (expires_at)

CREATE TABLE usage_hours (
	hour DATETIME NOT NULL,
	owner VARCHAR(300) NOT NULL,
	dimension VARCHAR(16) NOT NULL,
	name VARCHAR(255) NOT NULL,
	requests BIGINT NOT NULL,
	errors BIGINT NOT NULL,
	bytes_in BIGINT NOT NULL,
	bytes_out BIGINT NOT NULL,
	rows_done BIGINT NOT NULL,
	rows_failed BIGINT NOT NULL,
	CONSTRAINT pk_usage_hours PRIMARY KEY (hour, owner, dimension, name)
)

CREATE INDEX ix_usage_hours_owner ON usage_hours (owner, hour)

CREATE TABLE key_uses (
	key_id VARCHAR(36) NOT NULL,
	used_at DATETIME NOT NULL,
	CONSTRAINT pk_key_uses PRIMARY KEY (key_id),
	CONSTRAINT fk_key_uses_key_id_keys FOREIGN KEY(key_id) REFERENCES keys (id) ON DELETE CASCADE
)

INSERT INTO alembic_version (version_num) VALUES ('0008')
